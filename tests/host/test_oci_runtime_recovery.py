# ruff: noqa: F401, F811, ASYNC221 - fixtures are imported by name, and tests may block
"""The daemon may die at any moment: what runs goes on, what ended meanwhile is known, what was half made is
gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from oci_bed import LOOP, Bed, bed, pushed, registry, rootfs

from overlace.model.errors import FailedPrecondition
from overlace.runtime.base import FileMount, Healthcheck, LogOptions
from overlace.runtime.oci import shim as shims
from overlace.runtime.oci.mounts import unmount

pytestmark = pytest.mark.host

# A daemon of its own that makes containers as told and then waits to be killed.
CHILD = """
import asyncio, sys
from pathlib import Path
import msgspec
from overlace.runtime.base import ContainerConfig, Platform
from overlace.runtime.oci.runtime import OciRuntime

async def main():
    runtime = OciRuntime(Path(sys.argv[1]), Path(sys.argv[2]), cgroup_parent=sys.argv[3],
                         platform=Platform("linux", "amd64"))
    await runtime.open()
    for config in msgspec.json.decode(sys.stdin.buffer.read(), type=list[ContainerConfig]):
        await runtime.create(config)
        await runtime.start(config.id)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def _killed_daemon(bed: Bed, configs: list[object], wait: float = 0.0) -> None:
    """Let another process make `configs` run, then kill -9 it."""
    import msgspec

    await bed.runtime.close()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(bed.data_root),
        str(bed.exec_root),
        bed.cgroup,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(configs))
    process.stdin.close()
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await asyncio.sleep(wait)
    bed.runtime = bed.make()
    await bed.runtime.open()


async def test_kill_minus_nine_loses_no_container_and_no_exit_code(bed: Bed) -> None:
    stays, ends, killed = (
        bed.config(*LOOP),
        bed.config("sh", "-c", "sleep 0.7; echo bye; exit 9"),
        bed.config("sh", "-c", "sleep 0.5; kill -9 $(cat /proc/1/task/1/children)", init=True),
    )
    await _killed_daemon(bed, [stays, ends, killed], wait=1.5)
    found = {c.config.id: c for c in await bed.runtime.list()}
    assert set(found) == {stays.id, ends.id, killed.id}
    assert found[stays.id].status == "running" and Path(f"/proc/{found[stays.id].pid}").exists()
    assert (found[ends.id].status, found[ends.id].exit_code) == ("exited", 9)
    assert (found[killed.id].status, found[killed.id].exit_code) == ("exited", 137)
    assert (
        found[ends.id].finished_at - found[ends.id].started_at < 1_400_000_000
    )  # when it ended, not when we looked
    assert await bed.output(ends.id) == "bye\n"
    ended = await bed.runtime.stop(stays.id)
    assert ended.exit_code == 5


async def test_restart_keeps_log_followers_health_and_changes_going(bed: Bed) -> None:
    check = Healthcheck(test=("CMD", "true"), interval=200_000_000)
    config = await bed.running(
        "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done", healthcheck=check
    )
    await bed.reopen()
    container = await bed.runtime.inspect(config.id)
    assert (container.status, container.health) in (("running", "starting"), ("running", "healthy"))
    logged = len(container.health_log)
    await bed.until(lambda: _probes(bed, config.id, logged + 2))
    assert (await bed.runtime.inspect(config.id)).health == "healthy"
    numbers = []
    async for line in bed.runtime.logs(config.id, LogOptions(follow=True)):
        numbers.append(int(line.data))
        if len(numbers) > 15:
            break
    assert numbers == list(range(1, 17))  # nothing lost, nothing twice
    changes = bed.runtime.changes()
    await bed.runtime.kill(config.id, "KILL")
    assert await asyncio.wait_for(anext(changes), 5) == config.id


async def _probes(bed: Bed, container_id: str, count: int) -> bool:
    return len((await bed.runtime.inspect(container_id)).health_log) >= count


async def test_a_half_created_container_is_removed(bed: Bed) -> None:
    config = bed.config(*LOOP, files=(FileMount("/run/secrets/k", b"x"),))
    await bed.runtime.create(config)
    (bed.data_root / "containers" / config.id / "state.json").unlink()  # as if we had died before writing it
    await bed.reopen()
    assert await bed.runtime.list() == []
    assert bed.mounts() == []


async def test_a_start_that_was_not_noted_is_found_running(bed: Bed) -> None:
    config = bed.config(*LOOP)
    await bed.runtime.create(config)
    state = bed.data_root / "containers" / config.id / "state.json"
    created = state.read_bytes()
    await bed.runtime.start(config.id)
    await bed.runtime.close()
    state.write_bytes(created)  # as if we had died between the start and the note of it
    await bed.reopen()
    container = await bed.runtime.inspect(config.id)
    assert container.status == "running" and container.started_at > container.created_at
    assert (await bed.runtime.stop(config.id)).exit_code in (5, 137)


async def test_a_created_but_not_started_program_is_started_afresh(bed: Bed) -> None:
    config = bed.config("echo", "once")
    await bed.runtime.create(config)
    bundle = bed.exec_root / "bundles" / config.id
    # Go as far as a start does before the program runs, by its own pieces, and "die" there.
    runs = bed.runtime._require_runs()
    slot = bed.runtime._slots[config.id]
    original = runs.shim.start

    async def die(container_id: str) -> None:
        raise KeyboardInterrupt

    async def nothing(*_: object) -> None:
        return None

    runs.shim.start, runs._undo_start = die, nothing  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        await runs._start(slot)
    runs.shim.start = original  # type: ignore[method-assign]
    assert shims.open_shim(bundle, config.id) is not None
    await bed.reopen()
    assert (await bed.runtime.inspect(config.id)).status == "created"
    await bed.runtime.start(config.id)
    await bed.runtime.wait(config.id)
    assert await bed.output(config.id) == "once\n"


async def test_a_killed_shim_takes_its_container_along_and_says_so(bed: Bed) -> None:
    config = await bed.running()
    container = await bed.runtime.inspect(config.id)
    shim_pid = int((bed.exec_root / "bundles" / config.id / "shim.pid").read_text())
    os.kill(shim_pid, signal.SIGKILL)
    ended = await asyncio.wait_for(bed.runtime.wait(config.id), 10)
    assert (ended.exit_code, ended.error) == (137, "the container's shim was killed")
    await bed.until(lambda: _gone(container.pid))
    assert await _gone(container.pid)


async def test_after_a_host_restart_secrets_are_asked_for_again(bed: Bed) -> None:
    config = bed.config(*LOOP, files=(FileMount("/run/secrets/k", b"x"),))
    plain = bed.config("echo", "back")
    for item in (config, plain):
        await bed.runtime.create(item)
    await bed.runtime.start(config.id)
    await bed.runtime.start(plain.id)
    await bed.runtime.wait(plain.id)
    running = await bed.runtime.inspect(config.id)
    await bed.runtime.close()
    for name in ("shim.pid", "pid"):  # the power goes: processes, mounts and the exec root are gone
        os.kill(int((bed.exec_root / "bundles" / config.id / name).read_text()), signal.SIGKILL)
    assert running.pid
    await bed.until(lambda: _gone(running.pid))
    for line in reversed(bed.mounts()):
        unmount(Path(line.split()[1]))
    subprocess.run(["rm", "-rf", str(bed.exec_root)], check=True)
    await bed.reopen()
    ended = await bed.runtime.inspect(config.id)
    assert (ended.status, ended.exit_code) == ("exited", 137) and "restarted" in ended.error
    with pytest.raises(FailedPrecondition, match="its secrets were in memory only"):
        await bed.runtime.start(config.id)
    await bed.runtime.start(plain.id)
    await bed.runtime.wait(plain.id)
    assert await bed.output(plain.id) == "back\nback\n"
    for folder in bed.cgroups():
        with suppress(FileNotFoundError):  # the second container's may be just going
            folder.rmdir()


async def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_an_unreadable_image_index_is_put_aside(bed: Bed) -> None:
    config = bed.config("echo", "still here")
    await bed.runtime.create(config)
    (bed.data_root / "images/index.json").write_text("{ not json")
    await bed.reopen()
    assert await bed.runtime.images() == []
    await bed.runtime.start(config.id)  # its root file system was not swept
    await bed.runtime.wait(config.id)
    assert await bed.output(config.id) == "still here\n"
    assert (await bed.runtime.pull(bed.image, bed.platform)).tags == (bed.image,)
