# ruff: noqa: F401, F811 - fixtures and tests are imported by name
"""Runtime docker on Windows against the stand-in for its engine: a container's whole life, and what is refused."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from oci_bed import LOOP, Registry, registry, rootfs
from test_oci_runtime_containers import (
    test_changes_tell_start_and_end,
    test_verbs_are_idempotent_and_names_unique,
)
from test_oci_runtime_health_logs import (
    test_follow_from_before_the_start_until_the_end,
    test_streams_tail_since_and_until,
)
from windows_engine_bed import WINDOWS, Engine, EngineBed, engine, images

from overlace.model.errors import Conflict, InvalidArgument, NotFound, Unavailable
from overlace.runtime.base import ExecConfig, FileMount, Healthcheck, LogOptions, Mount, RegistryAuth
from overlace.runtime.docker.client import EngineClient

pytestmark = pytest.mark.host


@pytest.fixture
async def bed(registry: Registry, engine: Engine, tmp_path: Path) -> AsyncIterator[EngineBed]:
    made = EngineBed(tmp_path, registry, engine)
    try:
        await made.runtime.open()
        await made.runtime.pull(made.image, WINDOWS)
        yield made
        await made.clean()
    finally:
        await made.runtime.close()
        made.demolish()


async def test_it_says_what_it_is(engine: Engine) -> None:
    client = EngineClient(engine.host)
    try:
        assert (await client.connect())["Os"] == "windows"
        info = await client.call("GET", "/info")
    finally:
        await client.close()
    assert (info["OSType"], info["Isolation"]) == ("windows", "process")
    assert "emulated" in info["OperatingSystem"] and "20348" in info["KernelVersion"]


async def test_the_program_runs_from_hold_on_and_counts_from_release_on(
    bed: EngineBed, engine: Engine
) -> None:
    config = bed.config(*LOOP, hosts=(("web", "10.0.0.9"),))
    assert (await bed.runtime.create(config)).status == "created"
    assert not bed.runtime.gated  # type: ignore[attr-defined]  # of a runtime with sandboxes
    sandbox = await bed.runtime.hold(config.id)  # type: ignore[attr-defined]
    assert len(str(sandbox)) == 64 and (engine.namespaces / sandbox).exists()
    assert (await bed.runtime.inspect(config.id)).status == "created"
    again = await bed.reopen()
    assert await again.hold(config.id) == sandbox  # type: ignore[attr-defined]
    assert (await again.inspect(config.id)).status == "created"
    await again.release(config.id, "", ())  # type: ignore[attr-defined]
    assert (await again.inspect(config.id)).status == "running"
    found = await again.exec(config.id, ExecConfig(argv=("cat", "/etc/hosts")))
    assert "10.0.0.9\tweb" in await said(found)
    await again.stop(config.id)
    ended = await again.wait(config.id)
    assert (ended.status, ended.exit_code) == ("exited", 5)
    assert await again.hold(config.id) is None  # type: ignore[attr-defined]  # it ran: no second time

    async def gone() -> bool:
        return not (engine.namespaces / sandbox).exists()

    await bed.until(gone)
    assert await gone()


async def test_a_program_that_ended_at_once_has_nothing_to_attach(bed: EngineBed) -> None:
    config = bed.config("false")
    await bed.runtime.create(config)
    await bed.runtime.hold(config.id)  # type: ignore[attr-defined]

    async def ended() -> bool:
        return (await bed.runtime.inspect(config.id)).status == "exited"

    await bed.until(ended)
    assert await bed.runtime.hold(config.id) is None  # type: ignore[attr-defined]
    assert (await bed.runtime.inspect(config.id)).exit_code == 1


async def said(running: Any) -> str:
    text = b""
    async for piece in running.output():
        text += piece.data
    assert await running.wait() == 0, text
    await running.close()
    return text.decode()


async def test_both_may_die_while_the_container_runs(bed: EngineBed, engine: Engine) -> None:
    config = await bed.running()
    engine.end(signal.SIGKILL)
    with pytest.raises(Unavailable, match="Is the docker daemon running"):
        await bed.runtime.inspect(config.id)
    engine.start()
    again = await bed.reopen()
    found = await again.inspect(config.id)
    assert found.status == "running"
    assert await bed.output(config.id) == "up\n"
    await again.stop(config.id)
    assert (await again.inspect(config.id)).exit_code == 5


async def test_secrets_and_configs_are_where_windows_has_them(bed: EngineBed) -> None:
    files = (
        FileMount("/run/secrets/token", b"hush"),
        FileMount("C:\\app\\conf\\key.pem", b"pem"),
        FileMount("/web.config", b"<xml>", secret=False),
    )
    script = (
        "cat /ProgramData/Docker/secrets/token /app/conf/key.pem /web.config; "
        "touch /ProgramData/Docker/internal/secrets/x 2>/dev/null && echo writable; true"
    )
    config = bed.config("sh", "-c", script, files=files)
    await bed.runtime.create(config)
    await bed.runtime.start(config.id)
    await asyncio.wait_for(bed.runtime.wait(config.id), 20)
    assert await bed.output(config.id) == "hushpem<xml>"
    kept = bed.data_root / "containers" / config.id / "files"
    assert kept.exists()
    await bed.runtime.erase_files(config.id)
    assert not kept.exists()


async def test_folders_and_volumes_are_mounted_by_windows_paths(bed: EngineBed, engine: Engine) -> None:
    (engine.drive / "shared").mkdir(exist_ok=True)
    (engine.drive / "shared" / "a").write_text("from the host\n")
    mounts = (
        Mount("bind", "C:\\data", "c:\\Shared", read_only=True),
        Mount("volume", "C:\\vol", "kept", volume_labels={"a": "b"}),
    )
    assert await bed.sh("cat /data/a; touch /data/b 2>&1 || echo >/vol/x; ls /vol", mounts=mounts) == (
        "from the host\ntouch: /data/b: Read-only file system\nx\n"
    )
    (volume,) = [v for v in await bed.runtime.volumes() if v.name == "kept"]
    assert volume.labels == {"a": "b"}
    for mount, words in (
        (Mount("bind", "C:\\data", "/etc"), "invalid mount path: '/etc' mount path must be absolute"),
        (Mount("bind", "C:\\data", "C:\\nowhere"), "bind source path does not exist: C:\\\\nowhere"),
        (Mount("volume", "/data", "kept"), "invalid mount path: '/data'"),
        (Mount("volume", "C:\\", "kept"), "destination path cannot be"),
        (Mount("tmpfs", "C:\\t"), "tmpfs mounts"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await bed.runtime.create(bed.config("true", mounts=(mount,)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("cap_add", ("NET_ADMIN",)), ("sysctls", {"net.a": "1"}), ("pids", 9), ("read_only", True), ("init", True),
     ("swap", 0), ("netns", "host"), ("no_new_privileges", True)],
)  # fmt: skip
async def test_what_windows_has_not_is_refused(bed: EngineBed, field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="a Windows container has no"):
        await bed.runtime.create(bed.config("true", **{field: value}))


@pytest.mark.parametrize(
    ("host", "status", "words"),
    [
        ({"Privileged": True}, InvalidArgument, "privileged mode is not supported for Windows"),
        ({"PidsLimit": 5}, InvalidArgument, "Windows does not support PidsLimit"),
        ({"CapAdd": ["NET_ADMIN"]}, InvalidArgument, "Windows does not support CapAdd"),
        ({"Tmpfs": {"/x": ""}}, InvalidArgument, "windows does not support tmpfs"),
        ({"Isolation": "hyperv"}, InvalidArgument, "No hypervisor is present"),
        ({"Isolation": "chroot"}, InvalidArgument, "invalid isolation"),
        ({"NetworkMode": "host"}, NotFound, "network host not found"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "C:\\t"}]}, InvalidArgument, "mount type unknown"),
    ],
)
async def test_the_engine_refuses_as_docker_on_windows(
    bed: EngineBed, engine: Engine, host: dict[str, Any], status: type[Exception], words: str
) -> None:
    client = EngineClient(engine.host)
    await client.connect()
    try:
        body = {"Image": bed.image, "HostConfig": {"NetworkMode": "none", **host}}
        with pytest.raises(status, match=words):
            await client.call("POST", "/containers/create", body=body)
    finally:
        await client.close()


async def test_images_of_other_hosts_are_refused(bed: EngineBed) -> None:
    for name in ("new", "lin"):
        with pytest.raises((NotFound, Unavailable), match="this host runs windows"):
            await bed.runtime.pull(f"{bed.registry.address}/{name}:1", WINDOWS)


async def test_credentials_reach_the_engine_and_not_its_record(bed: EngineBed, engine: Engine) -> None:
    auth = RegistryAuth(username="u", password="S3cretWord")
    await bed.runtime.pull(bed.image, WINDOWS, auth)
    config = bed.config("true", files=(FileMount("/run/secrets/s", b"S3cretWord"),))
    await bed.runtime.create(config)
    (made,) = [e for e in engine.asked("POST", "containers/create") if e["query"].get("name") == config.name]
    assert made["status"] == 201 and made["body"]["HostConfig"]["NetworkMode"] == "none"
    assert "S3cretWord" not in engine.record.read_text()


async def test_health_by_cmd_and_by_shell(bed: EngineBed) -> None:
    second = 1_000_000_000
    for test in (("CMD", "test", "-e", "/up"), ("CMD-SHELL", "test -e /up")):
        check = Healthcheck(test, interval=second, timeout=9 * second, retries=1)
        config = await bed.running("sh", "-c", "touch /up; while :; do sleep 0.1; done", healthcheck=check)

        async def healthy(container_id: str = config.id) -> bool:
            return (await bed.runtime.inspect(container_id)).health == "healthy"

        await bed.until(healthy)
        assert await healthy()
        await bed.runtime.stop(config.id, 0)


async def test_exec_and_attach(bed: EngineBed) -> None:
    config = await bed.running("sh", "-c", "read x; echo got $x; read y; echo got $y", open_stdin=True)
    running = await bed.runtime.exec(config.id, ExecConfig(argv=("sh", "-c", "cat; exit 3"), stdin=True))
    await running.write(b"a" * 200_000)
    running.close_stdin()
    text = b"".join([piece.data async for piece in running.output()])
    assert (len(text), await running.wait()) == (200_000, 3)
    await running.close()
    attached = await bed.runtime.attach(config.id)
    await attached.write(b"one\n")
    pieces = attached.output()
    assert (await anext(pieces)).data == b"got one\n"
    await attached.close()
    with pytest.raises(Conflict, match="no terminal"):
        await bed.runtime.resize(config.id, 10, 20)


async def test_signals_top_and_usage(bed: EngineBed) -> None:
    config = await bed.running()
    titles, rows = await bed.runtime.top(config.id, "")
    assert titles == ["Name", "PID", "CPU", "Private Working Set"] and rows[0][0] == "sh"
    usage = await bed.runtime.usage(config.id)
    assert usage is not None and usage.memory > 0 and usage.system > 0 and usage.cpu_total > 0
    with pytest.raises(InvalidArgument, match="SIGKILL and SIGTERM"):
        await bed.runtime.kill(config.id, "SIGHUP")
    await bed.runtime.kill(config.id, "SIGTERM")
    assert (await asyncio.wait_for(bed.runtime.wait(config.id), 20)).exit_code == 5


async def test_the_engine_takes_two_signals_and_waits(bed: EngineBed, engine: Engine) -> None:
    config = await bed.running()
    client = EngineClient(engine.host)
    await client.connect()
    try:
        with pytest.raises(InvalidArgument, match="invalid signal: HUP"):
            await client.call("POST", f"/containers/{config.name}/kill", params={"signal": "HUP"})
        ended = asyncio.ensure_future(client.call("POST", f"/containers/{config.name}/wait"))
        await client.call("POST", f"/containers/{config.name}/kill", params={"signal": "SIGTERM"})
        assert await asyncio.wait_for(ended, 20) == {"StatusCode": 5}
    finally:
        await client.close()


async def test_logs_follow_across_the_streams(bed: EngineBed) -> None:
    config = await bed.running("sh", "-c", "echo out; echo err >&2; sleep 0.2; echo last")
    lines = [(e.stream, e.data) async for e in bed.runtime.logs(config.id, LogOptions(follow=True))]
    assert sorted(lines) == [("stderr", b"err\n"), ("stdout", b"last\n"), ("stdout", b"out\n")]
