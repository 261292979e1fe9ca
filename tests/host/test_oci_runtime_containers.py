# ruff: noqa: F401, F811, ASYNC221 - fixtures are imported by name, and tests may block
"""What a container gets and how it ends, with real images, runc or crun, and conmon."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_bed import LINUX, Bed, bed, pushed, registry, rootfs

from overlace.model.errors import Conflict, InvalidArgument, NotFound
from overlace.runtime.base import FileMount, LogOptions, Mount, Ulimit

pytestmark = pytest.mark.host


async def test_image_defaults_run_in_their_created_workdir(bed: Bed) -> None:
    ended, text = await bed.run()
    assert (ended.status, ended.exit_code, text) == ("exited", 0, "default\n")
    assert ended.argv == ("sh", "-c", "echo default")
    assert ended.started_at <= ended.finished_at and ended.pid == 0
    assert (await bed.sh("pwd")).strip() == "/made/here"
    assert (await bed.sh("pwd", workdir="/not/there/yet")).strip() == "/not/there/yet"


async def test_entrypoint_and_args_merge_as_docker_does(bed: Bed) -> None:
    _, text = await bed.run(entrypoint=("/app/say",))
    assert text == "said \n"  # the image's Cmd is dropped with its entrypoint
    _, text = await bed.run("a b", "c", entrypoint=("/app/say",))
    assert text == "said a b c\n"


async def test_environment_hostname_hosts_and_resolver(bed: Bed) -> None:
    text = await bed.sh(
        "echo $FROM_IMAGE $BOTH $OWN; hostname; cat /etc/hosts /etc/resolv.conf /etc/hostname; "
        "echo $HOME $HOSTNAME",
        env=("BOTH=own", "OWN=1"),
        hostname="web-1",
        hosts=(("db", "10.0.1.9"),),
        resolv_conf="nameserver 127.0.0.11\n",
    )
    lines = text.splitlines()
    assert lines[:2] == ["yes own 1", "web-1"]
    assert "10.0.1.9\tdb" in lines and "nameserver 127.0.0.11" in lines and "127.0.0.1\tlocalhost" in lines
    assert lines[-2:] == ["web-1", "/root web-1"]


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"oci-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        enter = ["nsenter", f"--net=/var/run/netns/{name}", "ip"]
        for words in (
            "link set lo up",
            "link add eth0 type veth peer name eth1",
            "addr add 10.77.0.5/24 dev eth0",
            "link set eth0 up",
        ):
            subprocess.run([*enter, *words.split()], check=True)
        yield f"/var/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


async def test_joins_the_network_namespace_and_knows_its_own_name(bed: Bed, netns: str) -> None:
    text = await bed.sh("ip -4 -o addr show eth0; grep me /etc/hosts", netns=netns, hostname="me")
    assert "10.77.0.5/24" in text
    assert text.splitlines()[-1] == "10.77.0.5\tme"


async def test_users_and_groups_come_from_the_image(bed: Bed) -> None:
    assert "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)" in await bed.sh("id", user="app")
    assert "uid=1000(app) gid=3000(more)" in await bed.sh("id", user="1000:more")
    assert "uid=4242 gid=0(root)" in await bed.sh("id", user="4242")
    assert "3000(more)" in await bed.sh("id", user="app", groups=("more",))
    with pytest.raises(
        InvalidArgument, match="unable to find user nosuch: no matching entries in passwd file"
    ):
        await bed.runtime.create(bed.config(user="nosuch"))


async def test_capabilities_privileges_and_hidden_paths(bed: Bed) -> None:
    status = "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status"
    default = dict(line.split(":\t") for line in (await bed.sh(status)).splitlines())
    assert default == {
        "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb",
        "NoNewPrivs": "0",
        "Seccomp": "2",
    }
    text = await bed.sh(status, cap_add=("NET_ADMIN",), cap_drop=("cap_chown",), no_new_privileges=True)
    changed = dict(line.split(":\t") for line in text.splitlines())
    assert int(changed["CapEff"], 16) == (0xA80425FB | 1 << 12) & ~1
    assert changed["NoNewPrivs"] == "1"
    assert await bed.sh(status + " | grep CapEff", cap_drop=("ALL",)) == "CapEff:\t0000000000000000\n"
    text = await bed.sh(
        "wc -c < /proc/keys; echo x > /proc/sys/kernel/domainname; unshare -m true; "
        "mount -t tmpfs x /mnt; echo end"
    )
    assert text.splitlines()[0] == "0" and "Read-only file system" in text
    assert text.count("Operation not permitted") + text.lower().count("permission denied") >= 2
    with pytest.raises(InvalidArgument, match='invalid capability: "FLY"'):
        await bed.runtime.create(bed.config(cap_add=("FLY",)))


async def test_read_only_root_with_tmpfs_and_devices(bed: Bed) -> None:
    text = await bed.sh(
        "touch /x; touch /scratch/y && echo wrote; stat -c %a /scratch; df -k /scratch | tail -1; "
        "test -c /dev/null && test -d /dev/pts && df /dev/shm | tail -1; echo a > /dev/null",
        read_only=True,
        mounts=(Mount("tmpfs", "/scratch", tmpfs_size=1 << 20, tmpfs_mode=0o700),),
    )
    assert "Read-only file system" in text and "wrote" in text and "700" in text
    assert "1024" in text and "65536" in text


async def test_limits_sysctls_ulimits_and_oom_score_reach_the_kernel(bed: Bed) -> None:
    text = await bed.sh(
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start; "
        "cat /proc/self/cgroup",
        ulimits=(Ulimit("nofile", 100, 200),),
        oom_score_adj=321,
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80"},
    )
    assert text.splitlines()[:4] == ["100", "200", "321", "80"]
    assert bed.cgroup in text
    config = await bed.running(nano_cpus=500_000_000, memory=64 << 20, pids=33)
    if os.path.isdir("/sys/fs/cgroup/memory"):
        path = Path("/sys/fs/cgroup")
        below = bed.cgroup.lstrip("/") + "/" + config.id
        assert (path / "cpu" / below / "cpu.cfs_quota_us").read_text() == "50000\n"
        assert (path / "memory" / below / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
        assert (path / "pids" / below / "pids.max").read_text() == "33\n"
    else:
        path = Path("/sys/fs/cgroup") / bed.cgroup.lstrip("/") / config.id
        assert (path / "cpu.max").read_text() == "50000 100000\n"
        assert (path / "memory.max").read_text() == f"{64 << 20}\n"
        assert (path / "pids.max").read_text() == "33\n"
    with pytest.raises(
        InvalidArgument, match=r"sysctl .vm.swappiness. is not in a separate kernel namespace"
    ):
        await bed.runtime.create(bed.config(sysctls={"vm.swappiness": "1"}))
    with pytest.raises(InvalidArgument, match="Minimum memory limit allowed is 6MB"):
        await bed.runtime.create(bed.config(memory=1 << 20))


async def test_out_of_memory_is_noticed(bed: Bed) -> None:
    ended, _ = await bed.run(
        "sh", "-c", "exec dd if=/dev/zero of=/dev/shm/fill bs=1M count=60 2>/dev/null", memory=16 << 20
    )
    assert (ended.exit_code, ended.oom_killed) == (137, True)


async def test_volumes_keep_data_and_start_with_the_images_content(bed: Bed) -> None:
    volume = (Mount("volume", "/seed", source="data"),)
    assert (
        await bed.sh("cat /seed/a /seed/sub/b; echo more > /seed/c", mounts=volume)
        == "from the image\ndeeper\n"
    )
    assert await bed.sh("cat /seed/c; rm /seed/a", mounts=volume) == "more\n"
    assert "a" not in (await bed.sh("ls /seed", mounts=volume)).split()  # filled once, while it was fresh
    await bed.sh(
        "touch /seed/z || echo refused", mounts=(Mount("volume", "/seed", source="data", read_only=True),)
    )
    assert not (bed.data_root / "volumes/data/_data/z").exists()
    (kept,) = [v for v in await bed.runtime.volumes() if v.name == "data"]
    assert kept.path == str(bed.data_root / "volumes/data/_data") and kept.created_at
    with pytest.raises(Conflict, match=r"^remove data: volume is in use - \["):  # ended containers count
        await bed.runtime.remove_volume("data")
    for found in await bed.runtime.list():
        await bed.runtime.remove(found.config.id)
    await bed.runtime.remove_volume("data")
    assert "data" not in {v.name for v in await bed.runtime.volumes()}
    assert not (bed.data_root / "volumes/data").exists()
    with pytest.raises(NotFound, match=r"^get data: no such volume$"):
        await bed.runtime.remove_volume("data")


async def test_a_volume_may_start_empty_and_a_bind_source_may_be_made(bed: Bed) -> None:
    empty = (Mount("volume", "/seed", source="bare", no_copy=True),)
    assert await bed.sh("ls /seed | wc -l", mounts=empty) == "0\n"
    source = bed.data_root / "made" / "here"
    assert (
        await bed.sh("touch /b/x", mounts=(Mount("bind", "/b", source=str(source), create_source=True),))
        == ""
    )
    assert (source / "x").exists()
    with pytest.raises(InvalidArgument) as caught:
        await bed.runtime.create(bed.config(mounts=(Mount("bind", "/b", source="/no/such"),)))
    assert caught.value.message == (
        'invalid mount config for type "bind": bind source path does not exist: /no/such'
    )
    (bed.data_root / "file").touch()
    below = Mount("bind", "/b", source=str(bed.data_root / "file" / "x"), create_source=True)
    with pytest.raises(InvalidArgument, match="error while creating mount source path"):
        await bed.runtime.create(bed.config(mounts=(below,)))


async def test_anonymous_volumes_go_with_their_container(bed: Bed) -> None:
    config = bed.config("sh", "-c", "ls /seed", mounts=(Mount("volume", "/seed"),))
    await bed.runtime.create(config)
    assert len(list((bed.data_root / "volumes").iterdir())) == 1
    await bed.runtime.start(config.id)
    await bed.runtime.wait(config.id)
    assert (await bed.output(config.id)).split() == ["a", "sub"]
    await bed.runtime.remove(config.id)
    assert list((bed.data_root / "volumes").iterdir()) == []


async def test_bind_mounts(bed: Bed, tmp_path: Path) -> None:
    source = tmp_path / "bound"
    source.mkdir()
    (source / "in").write_text("hello\n")
    mounts = (Mount("bind", "/deep/er", source=str(source)), Mount("tmpfs", "/deep/er/inner"))
    assert (
        await bed.sh("cat /deep/er/in; echo out > /deep/er/out; touch /deep/er/inner/x", mounts=mounts)
        == "hello\n"
    )
    assert (source / "out").read_text() == "out\n" and not (source / "inner/x").exists()
    text = await bed.sh("touch /b/z; true", mounts=(Mount("bind", "/b", source=str(source), read_only=True),))
    assert "Read-only file system" in text
    with pytest.raises(InvalidArgument, match="bind source path does not exist: /no/such"):
        await bed.runtime.create(bed.config(mounts=(Mount("bind", "/b", source="/no/such"),)))


async def test_bind_propagation(bed: Bed, tmp_path: Path) -> None:
    """A later mount below the source shows inside with rslave, and only then."""
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "outer", str(source)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(source)], check=True)
        (source / "sub").mkdir()
        script = "while ! test -e /stop; do sleep 0.05; done; ls /b/sub"
        configs = [
            await bed.running(
                "sh", "-c", script, mounts=(Mount("bind", "/b", source=str(source), propagation=propagation),)
            )
            for propagation in ("rprivate", "rslave")
        ]
        subprocess.run(["mount", "-t", "tmpfs", "inner", str(source / "sub")], check=True)
        (source / "sub/late").touch()
        outputs = []
        for config in configs:
            container = await bed.runtime.inspect(config.id)
            Path(f"/proc/{container.pid}/root/stop").touch()
            await asyncio.wait_for(bed.runtime.wait(config.id), 10)
            outputs.append(await bed.output(config.id))
        assert outputs == ["", "late\n"]
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(source)], check=True)


async def test_secrets_are_in_memory_only_and_configs_are_files(bed: Bed) -> None:
    words = secrets.token_hex(16)
    files = (
        FileMount("/run/secrets/key", words.encode(), uid=1000, mode=0o400),
        FileMount("/etc/ssl/other.key", words.encode()),
        FileMount("/etc/app.conf", b"setting=1\n", secret=False, gid=1001, mode=0o440),
    )
    config = bed.config(
        "sh",
        "-c",
        "cat /run/secrets/key /etc/ssl/other.key; echo; cat /etc/app.conf; "
        "stat -c '%u %g %a' /run/secrets/key /etc/app.conf;"
        "echo x > /run/secrets/key; echo x > /etc/app.conf; stat -f -c %T /run/secrets; sleep 60",
        files=files,
    )
    await bed.runtime.create(config)
    found = subprocess.run(["grep", "-rl", words, str(bed.data_root)], capture_output=True, text=True)
    assert found.stdout == ""
    await bed.runtime.start(config.id)
    follow = bed.runtime.logs(config.id, LogOptions(follow=True))
    text = ""
    async for line in follow:
        text += line.data.decode()
        if "tmpfs" in text and text.count("Read-only file system") == 2:  # two streams, in any order
            break
    lines = text.splitlines()
    assert lines[0] == words * 2 and lines[1] == "setting=1"
    assert "1000 0 400" in lines and "0 1001 440" in lines
    assert text.count("Read-only file system") == 2
    assert (await bed.runtime.inspect(config.id)).config.files == ()
    with pytest.raises(Conflict, match="in use"):
        await bed.runtime.erase_files(config.id)
    await bed.runtime.stop(config.id, 0)
    await bed.runtime.erase_files(config.id)
    await bed.runtime.erase_files(config.id)
    assert not any("secrets" in line for line in bed.mounts()), "nothing is left of them when it ended"
    assert not list((bed.data_root / "containers" / config.id).glob("files*"))
    assert "tmpfs" in await bed.output(config.id), "but its log"
    await bed.runtime.remove(config.id, force=True)
    assert not (bed.exec_root / "bundles" / config.id).exists()


async def test_tty_and_stdin(bed: Bed) -> None:
    _, text = await bed.run("sh", "-c", "test -t 0 && test -t 1 && echo terminal $TERM", tty=True)
    assert text == "terminal xterm\r\n"
    config = await bed.running("cat", open_stdin=True)  # without stdin kept open cat would end at once
    await asyncio.sleep(0.3)
    assert (await bed.runtime.inspect(config.id)).status == "running"


async def test_init_reaps_and_forwards(bed: Bed) -> None:
    assert "docker-init" in (await bed.sh("cat /proc/1/cmdline | tr '\\0' ' '; echo", init=True)).split()[0]


async def test_stop_sends_the_stop_signal_then_kills(bed: Bed) -> None:
    config = await bed.running()
    await bed.until(lambda: _logged(bed, config.id))
    assert (await bed.runtime.stop(config.id)).exit_code == 5
    script = "trap 'echo usr1; exit 6' USR1; trap '' TERM; echo up; while :; do sleep 0.1; done"
    config = await bed.running("sh", "-c", script, stop_signal="SIGUSR1")
    await bed.until(lambda: _logged(bed, config.id))
    assert (await bed.runtime.stop(config.id)).exit_code == 6
    config = await bed.running("sh", "-c", script)
    await bed.until(lambda: _logged(bed, config.id))
    began = time.monotonic()
    ended = await bed.runtime.stop(config.id, grace=300_000_000)
    assert (ended.exit_code, ended.status) == (137, "exited")
    assert 0.3 <= time.monotonic() - began < 3
    assert (await bed.runtime.stop(config.id)).exit_code == 137  # stopping a stopped one is fine


async def _logged(bed: Bed, container_id: str) -> bool:
    return "up" in await bed.output(container_id)


async def test_signals_and_exit_codes(bed: Bed) -> None:
    config = await bed.running()
    with pytest.raises(InvalidArgument, match="invalid signal: SIGNOPE"):
        await bed.runtime.kill(config.id, "SIGNOPE")
    await bed.runtime.kill(config.id, "KILL")
    assert (await bed.runtime.wait(config.id)).exit_code == 137
    with pytest.raises(Conflict, match="is not running"):
        await bed.runtime.kill(config.id, "TERM")
    ended, _ = await bed.run("sh", "-c", "kill -SEGV $$")
    assert ended.exit_code == 139 or ended.exit_code == 0  # pid 1 ignores signals it does not handle
    ended, _ = await bed.run("sh", "-c", "exit 42")
    assert ended.exit_code == 42


async def test_a_program_that_cannot_run_says_so(bed: Bed) -> None:
    for args, code, words in (
        (("nosuch",), 127, "executable file not found"),
        (("/no/such/file",), 127, "no such file or directory"),
        (("/app/plain",), 126, "permission denied"),
    ):
        config = bed.config(*args)
        await bed.runtime.create(config)
        with pytest.raises(InvalidArgument, match=words):
            await bed.runtime.start(config.id)
        container = await bed.runtime.inspect(config.id)
        assert (container.status, container.exit_code) == ("created", code)
        assert words in container.error
    assert bed.mounts() == [] and bed.cgroups() == []


async def test_an_exited_container_starts_again_with_its_files(bed: Bed) -> None:
    config = bed.config("sh", "-c", "cat /kept 2>/dev/null; echo again > /kept")
    await bed.runtime.create(config)
    for _ in range(2):
        await bed.runtime.start(config.id)
        await bed.runtime.wait(config.id)
    assert await bed.output(config.id) == "again\n"


async def test_verbs_are_idempotent_and_names_unique(bed: Bed) -> None:
    config = await bed.running()
    again = await bed.runtime.create(config)
    assert again.status == "running"
    assert (await bed.runtime.start(config.id)).pid == again.pid
    with pytest.raises(Conflict, match="exists already with another configuration"):
        await bed.runtime.create(bed.config(id=config.id))
    with pytest.raises(Conflict, match=f'The container name "/{config.name}" is already in use'):
        await bed.runtime.create(bed.config(name=config.name))
    with pytest.raises(Conflict, match="You cannot remove a running container"):
        await bed.runtime.remove(config.id)
    await bed.runtime.remove(config.id, force=True)
    await bed.runtime.remove(config.id)
    with pytest.raises(NotFound, match="No such container"):
        await bed.runtime.inspect(config.id)


async def test_changes_tell_start_and_end(bed: Bed) -> None:
    changes = bed.runtime.changes()
    config = await bed.running("sleep", "0.3")
    statuses = []
    while statuses[-1:] != [
        "exited"
    ]:  # an id not read yet is told once, so only the last status is sure to be seen
        assert await asyncio.wait_for(anext(changes), 5) == config.id
        statuses.append((await bed.runtime.inspect(config.id)).status)
    assert statuses[0] == "running"
    await bed.runtime.remove(config.id)
    assert await asyncio.wait_for(anext(changes), 5) == config.id
    await bed.runtime.close()
    assert [item async for item in changes] == []
    await bed.reopen()


async def test_twenty_five_containers_start_within_seconds(bed: Bed) -> None:
    began = time.monotonic()
    configs = await asyncio.gather(*(bed.running() for _ in range(25)))
    took = time.monotonic() - began
    assert {(await bed.runtime.inspect(c.id)).status for c in configs} == {"running"}
    assert took < 20, took  # about 0.6 s on an idle 2-core machine
    await asyncio.gather(*(bed.runtime.stop(c.id) for c in configs))
    assert {(await bed.runtime.inspect(c.id)).exit_code for c in configs} <= {5, 137}


async def test_nothing_stays_of_a_create_that_failed(bed: Bed) -> None:
    files = (
        FileMount("/run/secrets/k", b"x"),
        FileMount("/run/secrets/k/below", b"y"),
    )  # a file cannot hold a file
    with pytest.raises(InvalidArgument, match="cannot place a secret at below"):
        await bed.runtime.create(bed.config(files=files, mounts=(Mount("volume", "/seed"),)))
    assert bed.mounts() == []
    assert list((bed.data_root / "volumes").glob("*")) == []
    with pytest.raises(NotFound, match=r"No such image: nosuch:1"):
        await bed.runtime.create(bed.config(image="nosuch:1"))


async def test_the_bundle_is_what_was_asked(bed: Bed) -> None:
    config = await bed.running(nano_cpus=1_500_000_000)
    document = json.loads((bed.exec_root / "bundles" / config.id / "config.json").read_text())
    assert document["linux"]["resources"]["cpu"] == {"quota": 150_000, "period": 100_000}
    assert document["root"]["readonly"] is False
