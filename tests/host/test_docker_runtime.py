# ruff: noqa: F401, F811, ASYNC221 - fixtures and tests are imported by name, and tests may block
"""Runtime docker on a real Docker Engine: what the embedded runtime promises, and what only this one has to."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
from pathlib import Path

import pytest
from docker_bed import DockerBed, bed, lab, registry
from oci_bed import LINUX, pushed, rootfs
from test_oci_runtime_containers import (
    test_an_exited_container_starts_again_with_its_files,
    test_changes_tell_start_and_end,
    test_entrypoint_and_args_merge_as_docker_does,
    test_image_defaults_run_in_their_created_workdir,
    test_init_reaps_and_forwards,
    test_out_of_memory_is_noticed,
    test_read_only_root_with_tmpfs_and_devices,
    test_signals_and_exit_codes,
    test_stop_sends_the_stop_signal_then_kills,
    test_tty_and_stdin,
    test_verbs_are_idempotent_and_names_unique,
)
from test_oci_runtime_health_logs import (
    test_follow_from_before_the_start_until_the_end,
    test_streams_tail_since_and_until,
)

from overlace.lab import Lab
from overlace.model.errors import Conflict, InvalidArgument, NotFound, Unavailable
from overlace.network.linux.netns import adopt_namespace, remove_namespace
from overlace.runtime.base import ExecConfig, FileMount, Healthcheck, LogOptions, Mount, Ulimit

pytestmark = pytest.mark.host


async def test_the_program_runs_only_once_its_network_is_there(bed: DockerBed, tmp_path: Path) -> None:
    config = bed.config("sh", "-c", "ip -o link show eth0 && cat /etc/resolv.conf && grep web /etc/hosts")
    assert (await bed.runtime.create(config)).status == "created"
    netns = await bed.runtime.hold(config.id)  # type: ignore[attr-defined]  # of a runtime with sandboxes
    held = await bed.runtime.inspect(config.id)
    assert (held.status, held.pid, held.started_at) == ("created", 0, 0)
    assert netns == await bed.runtime.hold(config.id)  # type: ignore[attr-defined]
    kept = adopt_namespace(tmp_path / "netns", netns)
    assert kept == adopt_namespace(kept, netns)
    enter = ["nsenter", f"--net={kept}", "ip", "link"]
    subprocess.run([*enter, *["add", "eth0", "type", "veth", "peer", "name", "eth1"]], check=True)
    # a restart of ours meanwhile: it is still held, and released by whoever asks
    again = await bed.reopen()
    assert (await again.inspect(config.id)).status == "created"
    await bed.runtime.release(config.id, "nameserver 127.0.0.11\n", (("web", "10.0.0.9"),))  # type: ignore[attr-defined]
    ended = await asyncio.wait_for(bed.runtime.wait(config.id), 20)
    text = await bed.output(config.id)
    remove_namespace(kept)
    assert ended.exit_code == 0, text
    assert "eth0" in text and "nameserver 127.0.0.11" in text and "10.0.0.9\tweb" in text


async def test_a_held_container_stops_when_told(bed: DockerBed) -> None:
    config = bed.config("sleep", "60", stop_grace=20_000_000_000)
    await bed.runtime.create(config)
    await bed.runtime.hold(config.id)  # type: ignore[attr-defined]
    ended = await asyncio.wait_for(bed.runtime.stop(config.id), 10)
    assert (ended.status, ended.exit_code) == ("exited", 128 + signal.SIGTERM)


async def test_a_program_that_cannot_run_says_so(bed: DockerBed) -> None:
    for program, words in (
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/no/such/file", 'exec: "/no/such/file": no such file or directory'),
        ("/app/plain", 'exec: "/app/plain": permission denied'),
    ):
        config = bed.config(program)
        await bed.runtime.create(config)
        with pytest.raises(InvalidArgument) as caught:
            await bed.runtime.start(config.id)
        assert caught.value.message == words
        assert (await bed.runtime.inspect(config.id)).status == "created"


async def test_users_and_groups_come_from_the_image(bed: DockerBed) -> None:
    assert "uid=1000(app) gid=1001(app)" in await bed.sh("id", user="app")
    assert "uid=4242 gid=0(root)" in await bed.sh("id", user="4242")
    assert "3000(more)" in await bed.sh("id", user="app", groups=("more",))
    config = bed.config("true", user="nosuch")
    await bed.runtime.create(config)  # the engine looks only when it starts it
    with pytest.raises(InvalidArgument, match="unable to find user nosuch: no matching entries in passwd"):
        await bed.runtime.start(config.id)


async def test_capabilities_and_privileges(bed: DockerBed) -> None:
    status = "grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    default = dict(line.split(":\t") for line in (await bed.sh(status)).splitlines())
    assert default == {"CapEff": "00000000a80425fb", "NoNewPrivs": "0"}
    text = await bed.sh(status, cap_add=("NET_ADMIN",), cap_drop=("cap_chown",), no_new_privileges=True)
    changed = dict(line.split(":\t") for line in text.splitlines())
    assert int(changed["CapEff"], 16) == (0xA80425FB | 1 << 12) & ~1
    assert changed["NoNewPrivs"] == "1"


async def test_secrets_are_in_memory_only_and_configs_are_files(bed: DockerBed) -> None:
    words = secrets.token_hex(16)
    files = (
        FileMount("/run/secrets/key", words.encode(), uid=1000, mode=0o400),
        FileMount("/etc/ssl/other.key", words.encode()),
        FileMount("/etc/app.conf", b"setting=1\n", secret=False, gid=1001, mode=0o440),
    )
    show = (
        "cat /run/secrets/key /etc/ssl/other.key; echo; cat /etc/app.conf; stat -f -c %T /run/secrets; "
        "stat -c '%u %g %a' /run/secrets/key /etc/app.conf; echo x > /run/secrets/key || echo refused"
    )
    config = bed.config("sh", "-c", show, files=files)
    await bed.runtime.create(config)
    places = (str(bed.data_root), bed.lab.host("linux-1").data_root)
    found = subprocess.run(["grep", "-rl", words, *places], capture_output=True, text=True)
    assert found.stdout == ""
    await bed.runtime.start(config.id)
    await bed.runtime.wait(config.id)
    assert [line.data.decode() async for line in bed.runtime.logs(config.id, LogOptions(stderr=False))] == [
        f"{words * 2}\n", "setting=1\n", "tmpfs\n", "1000 0 400\n", "0 1001 440\n", "refused\n",
    ]  # fmt: skip
    await bed.runtime.remove(config.id)
    assert not (bed.exec_root / "bundles" / config.id).exists()


async def test_every_field_reaches_the_container(bed: DockerBed) -> None:
    text = await bed.sh(
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start; "
        "hostname; echo $OWN; pwd; cat /etc/hosts",
        ulimits=(Ulimit("nofile", 100, 200),),
        oom_score_adj=321,
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80"},
        hostname="web-1",
        env=("OWN=1",),
        workdir="/app",
        hosts=(("db", "10.0.1.9"),),
    )
    assert text.splitlines()[:7] == ["100", "200", "321", "80", "web-1", "1", "/app"]
    assert "10.0.1.9\tdb" in text.splitlines()
    config = await bed.running(
        nano_cpus=500_000_000,
        memory=64 << 20,
        pids=33,
        labels={"a": "b"},
        log_max_size=1 << 20,
        log_max_files=3,
        stop_signal="SIGUSR1",
        stop_grace=7_000_000_000,
    )
    (seen,) = json.loads(bed.engine_cli("inspect", config.name))
    host = seen["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 33)
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1048576", "max-file": "3"}}
    assert host["NetworkMode"] == "none" and seen["Config"]["Labels"]["a"] == "b"
    assert (seen["Config"]["StopSignal"], seen["Config"]["StopTimeout"]) == ("SIGUSR1", 7)


async def test_volumes_are_the_engines_and_anonymous_ones_go(bed: DockerBed) -> None:
    name = f"data-{os.getpid()}"
    mounts = (Mount("volume", "/seed", source=name), Mount("volume", "/other"))
    assert await bed.sh("cat /seed/a; echo more > /seed/c", mounts=mounts) == "from the image\n"
    assert await bed.sh("cat /seed/c", mounts=mounts[:1]) == "more\n"
    assert name in {v.name for v in await bed.runtime.volumes()}
    for found in await bed.runtime.list():
        await bed.runtime.remove(found.config.id)
    assert {v.name for v in await bed.runtime.volumes()} == {name}
    await bed.runtime.remove_volume(name)
    with pytest.raises(NotFound):
        await bed.runtime.remove_volume(name)
    with pytest.raises(InvalidArgument, match="bind source path does not exist: /no/such"):
        await bed.runtime.create(bed.config(mounts=(Mount("bind", "/b", source="/no/such"),)))


async def test_health_is_told_and_a_start_interval_an_old_engine_lacks_is_refused(bed: DockerBed) -> None:
    check = Healthcheck(test=("CMD-SHELL", "test -e /well"), interval=1_000_000_000, retries=2)
    config = await bed.running("sh", "-c", "touch /well; sleep 2; rm /well; sleep 60", healthcheck=check)
    seen: list[str | None] = []

    async def unhealthy() -> bool:
        container = await bed.runtime.inspect(config.id)
        seen.append(container.health)
        return container.health == "unhealthy"

    await bed.until(unhealthy)
    assert seen[-1] == "unhealthy" and "healthy" in seen and seen[0] == "starting"
    assert (await bed.runtime.inspect(config.id)).failing_streak >= 2
    often = Healthcheck(test=("CMD", "true"), start_interval=1_000_000_000)
    version = json.loads(bed.engine_cli("version", "--format", "{{json .Server.APIVersion}}"))
    if tuple(map(int, version.split("."))) < (1, 44):
        with pytest.raises(InvalidArgument, match="start interval 1s: this host's Docker Engine speaks API"):
            await bed.runtime.create(bed.config(healthcheck=often))


async def test_what_the_registry_lacks_is_told(bed: DockerBed) -> None:
    with pytest.raises((NotFound, Unavailable), match="nosuch"):
        await bed.runtime.pull(f"{bed.lab.registry}/nosuch:1", LINUX)
    with pytest.raises(NotFound, match="No such image"):
        await bed.runtime.create(bed.config(image="nosuch:1"))


async def test_restarts_of_both_daemons_lose_no_container_and_no_exit_code(bed: DockerBed) -> None:
    lives = await bed.running("sh", "-c", "while ! test -e /stop; do sleep 0.05; done; exit 9")
    ends = await bed.running("sh", "-c", "sleep 1; exit 7")
    pid = (await bed.runtime.inspect(lives.id)).pid
    waiting = asyncio.create_task(bed.runtime.wait(lives.id))
    for number in (signal.SIGTERM, signal.SIGKILL):
        bed.lab.stop_engine("linux-1", number)
        with pytest.raises(Unavailable, match="Is the docker daemon running"):
            await bed.runtime.create(bed.config("true"))
        bed.lab.start_engine("linux-1")

        async def back() -> bool:
            try:
                return (await bed.runtime.inspect(lives.id)).status == "running"
            except Unavailable:
                return False

        await bed.until(back)
        assert (await bed.runtime.inspect(lives.id)).pid == pid
    await bed.reopen() if waiting.done() else None
    assert (await asyncio.wait_for(bed.runtime.wait(ends.id), 20)).exit_code == 7
    Path(f"/proc/{pid}/root/stop").touch()
    assert (await asyncio.wait_for(waiting, 20)).exit_code == 9


async def test_only_its_own_containers_are_seen_and_a_half_created_one_goes(bed: DockerBed) -> None:
    bed.engine_cli("create", "--name", "not-ours", bed.image, "true")
    config = bed.config("true")
    await bed.runtime.create(config)
    (bed.data_root / "containers" / config.id / "docker.json").unlink()  # as if we died before it was written
    await bed.reopen()
    assert await bed.runtime.list() == []
    left = bed.engine_cli("ps", "--all", "--format", "{{.Names}}").split()
    assert "not-ours" in left and config.name not in left
    bed.engine_cli("rm", "not-ours")


async def test_a_container_removed_behind_our_back_is_gone(bed: DockerBed) -> None:
    config = await bed.running()
    bed.engine_cli("rm", "--force", config.name)
    with pytest.raises(NotFound, match=f"No such container: {config.id}"):
        await bed.runtime.inspect(config.id)
    assert await bed.runtime.list() == []
    await bed.runtime.remove(config.id)  # as the agent does with such a task


async def test_another_program_runs_in_it_with_its_streams_and_exit_code(bed: DockerBed) -> None:
    config = await bed.running()
    script = 'read line; echo "got $line"; echo problem >&2; exit 3'
    running = await bed.runtime.exec(config.id, ExecConfig(argv=("sh", "-c", script), stdin=True))
    try:
        await running.write(b"a word\n")
        running.close_stdin()
        seen = [piece async for piece in running.output()]
        assert await running.wait() == 3
    finally:
        await running.close()
    assert b"".join(p.data for p in seen if p.stream == "stdout") == b"got a word\n"
    assert b"".join(p.data for p in seen if p.stream == "stderr") == b"problem\n"
    asked = ExecConfig(
        argv=("sh", "-c", "stty size; id -u; pwd"), tty=True, user="app", workdir="/app", size=(7, 44)
    )
    running = await bed.runtime.exec(config.id, asked)
    try:
        text = b"".join([p.data async for p in running.output()]).decode().split()
    finally:
        await running.close()
    plain = await bed.runtime.exec(config.id, ExecConfig(argv=("true",)))
    with pytest.raises(Conflict, match="has no terminal"):
        plain.resize(1, 1)
    await plain.close()
    assert text[-2:] == ["1000", "/app"]
    with pytest.raises(NotFound):
        await bed.runtime.exec("0" * 64, ExecConfig(argv=("true",)))
    titles, rows = await bed.runtime.top(config.id, "")
    assert "PID" in titles and any("sleep" in " ".join(row) or "sh" in " ".join(row) for row in rows)
    await bed.runtime.stop(config.id)
    for asking in (bed.runtime.exec(config.id, ExecConfig(argv=("true",))), bed.runtime.top(config.id, "")):
        with pytest.raises(Conflict, match="is not running"):
            await asking


async def test_the_hosts_own_network_when_asked(bed: DockerBed) -> None:
    show = "tail -n +3 /proc/net/dev | cut -d: -f1"
    names = await bed.sh(f"{show}; hostname", netns="host", hostname="by-name")
    mine = subprocess.run(
        bed.lab.command("linux-1", ["sh", "-c", show]), capture_output=True, text=True, check=True
    ).stdout
    assert set(mine.split()) | {"by-name"} == set(names.split())


async def test_its_own_streams_size_and_usage(bed: DockerBed) -> None:
    config = await bed.running("cat", open_stdin=True)
    attached = await bed.runtime.attach(config.id)
    try:
        await attached.write(b"hello\n")
        piece = await asyncio.wait_for(anext(aiter(attached.output())), 10)
        assert (piece.stream, piece.data) == ("stdout", b"hello\n")
    finally:
        await attached.close()
    usage = await bed.runtime.usage(config.id)
    assert usage is not None and usage.memory > 0 and usage.pids == 1 and usage.system > 0
    with pytest.raises(Conflict, match="has no terminal"):
        await bed.runtime.resize(config.id, 10, 20)
    with pytest.raises(Conflict, match="in use"):
        await bed.runtime.erase_files(config.id)
    await bed.runtime.stop(config.id, grace=0)
    assert await bed.runtime.usage(config.id) is None
    with pytest.raises(Conflict, match="is not running"):
        await bed.runtime.attach(config.id)
    size = ("sh", "-c", "until [ \"$(stty size)\" = '10 20' ]; do sleep 0.05; done; exit 4")
    terminal = await bed.running(*size, tty=True)
    await bed.runtime.resize(terminal.id, 10, 20)
    assert (await asyncio.wait_for(bed.runtime.wait(terminal.id), 20)).exit_code == 4
