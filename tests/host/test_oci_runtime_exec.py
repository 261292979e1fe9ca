# ruff: noqa: F401, F811 - fixtures are imported by name
"""Other programs in a running container: pipes, terminals, users, exit codes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from oci_bed import Bed, bed, pushed, registry, rootfs

from overlace.model.errors import Conflict, InvalidArgument
from overlace.runtime.base import Exec, ExecConfig, Mount

pytestmark = pytest.mark.host


async def feed(running: Exec, stdin: bytes) -> None:
    await running.write(stdin)
    running.close_stdin()


async def ran(bed: Bed, container: str, *argv: str, stdin: bytes = b"", **asked: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a program."""
    running = await bed.runtime.exec(container, ExecConfig(argv=argv, stdin=bool(stdin), **asked))
    said = {"stdout": b"", "stderr": b""}
    try:
        feeding = asyncio.create_task(feed(running, stdin))
        async for piece in running.output():
            said[piece.stream] += piece.data
        await feeding
        return await running.wait(), said["stdout"].decode(), said["stderr"].decode()
    finally:
        await running.close()


async def test_it_is_as_the_container_unless_said(bed: Bed) -> None:
    config = await bed.running(env=("A=1", "B=2"), workdir="/var", user="7", cap_drop=("ALL",))
    script = "echo $A $B; pwd; id -u; grep CapBnd /proc/self/status; echo oops >&2; exit 3"
    code, out, err = await ran(bed, config.id, "sh", "-c", script)
    assert (code, err) == (3, "oops\n")
    assert out.split() == ["1", "2", "/var", "7", "CapBnd:", "0" * 16]
    code, out, _ = await ran(
        bed, config.id, "sh", "-c", "echo $A $B; pwd; id -u", env=("B=3",), workdir="/tmp", user="root"
    )
    assert (code, out.split()) == (0, ["1", "3", "/tmp", "0"])
    _, out, _ = await ran(bed, config.id, "grep", "CapBnd", "/proc/self/status", privileged=True)
    assert int(out.split()[1], 16) > 1 << 35


async def test_input_output_and_much_of_it(bed: Bed) -> None:
    config = await bed.running()
    much = b"x" * 1_000_000
    code, out, _ = await ran(bed, config.id, "cat", stdin=much)
    assert code == 0 and out.encode() == much
    code, out, _ = await ran(bed, config.id, "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo done")
    assert (code, out) == (0, "done\n"), "what it leaves behind does not hold it"


async def test_a_terminal_and_its_size(bed: Bed) -> None:
    config = await bed.running()
    asked = ExecConfig(argv=("sh",), tty=True, stdin=True, size=(33, 77))
    running = await bed.runtime.exec(config.id, asked)
    seen = b""
    try:
        await running.write(
            b"stty size; tty; echo $TERM; until stty size | grep -q ^40; do sleep 0.02; done; stty size; exit 5\n"
        )
        async for piece in running.output():
            seen += piece.data
            if b"xterm\r\n" in seen and b"40 99" not in seen:
                running.resize(40, 99)
        assert await running.wait() == 5
    finally:
        await running.close()
    assert b"33 77\r\n" in seen and b"/dev/pts/" in seen and b"40 99\r\n" in seen, seen


async def test_lines_end_once_whoever_ends_them(bed: Bed) -> None:
    config = await bed.running()
    script = (
        "stty onlcr; echo one; stty -onlcr; echo two; stty onlcr; head -c 40000 /dev/zero | tr '\\0' '\\n'"
    )
    code, out, _ = await ran(bed, config.id, "sh", "-c", script, tty=True)
    assert (code, out) == (0, "one\r\ntwo\r\n" + "\r\n" * 40000)


async def test_what_cannot_be_run(bed: Bed) -> None:
    config = await bed.running()
    code, _, err = await ran(bed, config.id, "nosuch")
    assert code == 127 and err.startswith("OCI runtime exec failed: ") and "nosuch" in err
    code, _, err = await ran(bed, config.id, "/etc/passwd")
    assert code == 126 and "permission denied" in err.lower()
    with pytest.raises(InvalidArgument, match="unable to find user nobody-such"):
        await ran(bed, config.id, "true", user="nobody-such")
    with pytest.raises(InvalidArgument, match="No exec command specified"):
        await ran(bed, config.id, "")
    await bed.runtime.stop(config.id, 0)
    with pytest.raises(Conflict, match="is not running"):
        await ran(bed, config.id, "true")
    assert not list((bed.exec_root / "bundles" / config.id / "execs").glob("*"))


async def test_its_processes(bed: Bed) -> None:
    config = await bed.running("sh", "-c", "sleep 1234; true")
    titles, rows = await bed.runtime.top(config.id, "-eo pid,args")
    assert titles == ["PID", "COMMAND"]
    assert sorted(row[1] for row in rows) == ["sh -c sleep 1234; true", "sleep 1234"]
    with pytest.raises(InvalidArgument, match="Couldn't find PID field"):
        await bed.runtime.top(config.id, "-eo args")


async def test_being_with_a_container(bed: Bed) -> None:
    config = await bed.running(
        "sh", "-c", "read a; echo got $a; echo oops >&2; read b; exit 4", open_stdin=True
    )
    first, second = await bed.runtime.attach(config.id), await bed.runtime.attach(config.id)
    await first.write(b"one\n")
    said = {"stdout": b"", "stderr": b""}
    async for piece in second.output():
        said[piece.stream] += piece.data
        if said == {"stdout": b"got one\n", "stderr": b"oops\n"}:
            break
    await second.close()
    with pytest.raises(Conflict, match="no terminal"):
        await bed.runtime.resize(config.id, 1, 1)
    await first.write(b"two\n")
    assert await first.wait() == 4
    await first.close()
    with pytest.raises(Conflict, match="is not running"):
        await bed.runtime.attach(config.id)


async def test_a_containers_terminal_and_its_size(bed: Bed) -> None:
    config = await bed.running("sh", "-c", "read a; stty size; read b", tty=True, open_stdin=True)
    await bed.runtime.resize(config.id, 20, 60)
    attached = await bed.runtime.attach(config.id)
    await attached.write(b"\n")
    seen = b""
    async for piece in attached.output():
        seen += piece.data
        if b"20 60" in seen:
            break
    await attached.close()
    assert b"20 60" in seen


async def test_who_attaches_before_the_start_misses_nothing(bed: Bed) -> None:
    config = bed.config("sh", "-c", "echo first; cat; echo last >&2", open_stdin=True, stdin_once=True)
    await bed.runtime.create(config)
    left = await bed.runtime.attach(config.id, early=True)
    attached = await bed.runtime.attach(config.id, early=True)
    await left.close()  # it went before anything began
    feeding = asyncio.create_task(feed(attached, b"typed\n"))
    await bed.runtime.start(config.id)
    said = {"stdout": b"", "stderr": b""}
    async for piece in attached.output():
        said[piece.stream] += piece.data
    await feeding
    assert said == {"stdout": b"first\ntyped\n", "stderr": b"last\n"}, "its input ended with its client's"
    assert await attached.wait() == 0
    await attached.close()


async def test_who_attached_to_what_does_not_start_is_let_go(bed: Bed) -> None:
    config = bed.config("nosuch-program")
    await bed.runtime.create(config)
    attached = await bed.runtime.attach(config.id, early=True)
    with pytest.raises(InvalidArgument, match="nosuch-program"):
        await bed.runtime.start(config.id)
    assert [piece async for piece in attached.output()] == []
    await attached.close()


async def test_a_container_runs_again_with_its_files_and_its_new_name(bed: Bed) -> None:
    config = bed.config("sh", "-c", "cat /kept; echo was here >> /kept")
    other = await bed.running()
    await bed.runtime.create(config)
    outputs = []
    for _ in range(2):
        await bed.runtime.start(config.id)
        await asyncio.wait_for(bed.runtime.wait(config.id), 30)
        outputs.append(await bed.output(config.id))
    assert outputs[1].count("was here") == 1, "the second run sees what the first one left"
    await bed.runtime.rename(config.id, "renamed")
    with pytest.raises(Conflict, match="already in use"):
        await bed.runtime.rename(config.id, other.name)
    await bed.reopen()
    assert (await bed.runtime.inspect(config.id)).config.name == "renamed"


async def test_anonymous_volumes_stay_unless_they_shall_go(bed: Bed) -> None:
    for gone in (False, True):
        config = bed.config("true", mounts=(Mount("volume", "/data"),))
        made = await bed.runtime.create(config)
        [volume] = made.volumes
        await bed.runtime.remove(config.id, volumes=gone)
        assert (volume.name in {v.name for v in await bed.runtime.volumes()}) is not gone
