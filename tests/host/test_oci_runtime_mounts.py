# ruff: noqa: F401, F811 - fixtures are imported by name, and tests may block
"""Options of mounts, log drivers and filters as a container sees them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_bed import Bed, bed, pushed, registry, rootfs

from overlace.model.errors import InvalidArgument, Unimplemented
from overlace.runtime.base import Mount
from overlace.runtime.oci.spec import kernel_version

pytestmark = pytest.mark.host


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A folder with another file system mounted below it."""
    below = tmp_path / "outer" / "below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
    (below / "deep").write_text("deep\n")
    yield below.parent
    subprocess.run(["umount", str(below)], check=True)


async def test_what_lies_below_a_bind_mount(bed: Bed, nested: Path) -> None:
    whole = (Mount("bind", "/b", source=str(nested)),)
    assert await bed.sh("cat /b/below/deep", mounts=whole) == "deep\n"
    alone = (Mount("bind", "/b", source=str(nested), recursive=False),)
    assert await bed.sh("ls /b/below | wc -l", mounts=alone) == "0\n", "the mount point is there, empty"
    if kernel_version() < (5, 12):
        pytest.skip("recursive read-only mounts need Linux 5.12")
    for asked in ("try", "must"):
        mount = Mount("bind", "/b", source=str(nested), read_only=True, recursive_read_only=asked)  # type: ignore[arg-type]
        said = await bed.sh("touch /b/x; touch /b/below/x; true", mounts=(mount,))
        assert said.count("Read-only file system") == 2, said
    mount = Mount("bind", "/b", source=str(nested), read_only=True, recursive_read_only="no")
    said = await bed.sh("touch /b/x; touch /b/below/x; true", mounts=(mount,))
    assert said.count("Read-only file system") == 1, said


async def test_tmpfs_may_hold_programs(bed: Bed) -> None:
    script = "cp /bin/busybox /t/echo && /t/echo ran"
    assert await bed.sh(script, mounts=(Mount("tmpfs", "/t", tmpfs_exec=True),)) == "ran\n"
    ended, said = await bed.run("sh", "-c", script, mounts=(Mount("tmpfs", "/t"),))
    assert ended.exit_code == 126 and "Permission denied" in said


async def test_a_volume_is_what_its_options_say(bed: Bed, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "kept").write_text("kept\n")
    options = {"type": "none", "o": "bind", "device": str(shared)}
    mount = Mount("volume", "/v", source="nas", volume_options=options, volume_labels={"tier": "db"})
    assert await bed.sh("cat /v/kept; echo new > /v/new", mounts=(mount,)) == "kept\n"
    assert (shared / "new").read_text() == "new\n"
    [volume] = await bed.runtime.volumes()
    assert (volume.name, volume.options, volume.labels) == ("nas", options, {"tier": "db"})
    again = Mount("volume", "/v", source="nas", volume_labels={"tier": "other"})
    config = await bed.running(mounts=(again,))
    [volume] = await bed.runtime.volumes()
    assert volume.labels == {"tier": "db"}, "a volume stays what it was made as"
    for container in await bed.runtime.list():
        await bed.runtime.remove(container.config.id, force=True)
    assert not any("volumes/nas" in line for line in bed.mounts()), (
        f"unmounted with {config.id[:6]}, its last"
    )
    await bed.runtime.remove_volume("nas")
    assert (shared / "kept").exists(), "what was mounted is not the volume's to remove"


async def test_a_volume_that_cannot_be_mounted(bed: Bed) -> None:
    options = {"type": "nosuchfs", "device": "none"}
    with pytest.raises(InvalidArgument, match="failed to mount local volume bad: mount: "):
        await bed.runtime.create(
            bed.config(mounts=(Mount("volume", "/v", source="bad", volume_options=options),))
        )
    with pytest.raises(InvalidArgument, match='missing required option: "device"'):
        await bed.runtime.create_volume("worse", {}, {"type": "tmpfs"})
    with pytest.raises(InvalidArgument, match='invalid option: "colour"'):
        await bed.runtime.create_volume("worse", {}, {"colour": "red"})


async def test_one_folder_of_a_volume(bed: Bed) -> None:
    await bed.sh(
        "mkdir -p /v/in/side && echo x > /v/in/side/f", mounts=(Mount("volume", "/v", source="big"),)
    )
    part = Mount("volume", "/p", source="big", subpath="in/side")
    assert await bed.sh("cat /p/f; ls /p", mounts=(part,)) == "x\nf\n"
    await bed.sh("ln -s /etc /v/out", mounts=(Mount("volume", "/v", source="big"),))
    with pytest.raises(InvalidArgument, match="cannot access path out of volume big"):
        await bed.runtime.create(bed.config(mounts=(Mount("volume", "/p", source="big", subpath="out"),)))


async def test_log_drivers(bed: Bed) -> None:
    config = bed.config("sh", "-c", "echo heard", log_driver="none")
    await bed.runtime.create(config)
    await bed.runtime.start(config.id)
    ended = await asyncio.wait_for(bed.runtime.wait(config.id), 30)
    assert ended.exit_code == 0 and ended.host_files.log == ""
    with pytest.raises(Unimplemented, match="configured logging driver does not support reading"):
        await bed.output(config.id)
    assert not list((bed.data_root / "containers" / config.id).glob("log*"))
    ended, said = await bed.run("echo", "heard", log_driver="local")
    assert said == "heard\n" and Path(ended.host_files.log).exists()


async def test_own_files_are_where_inspect_says(bed: Bed) -> None:
    config = await bed.running(hostname="me", resolv_conf="nameserver 127.0.0.11\n")
    files = (await bed.runtime.inspect(config.id)).host_files
    assert Path(files.hostname).read_text() == "me\n"
    assert "localhost" in Path(files.hosts).read_text()
    assert Path(files.resolv_conf).read_text() == "nameserver 127.0.0.11\n"


async def test_seccomp_as_asked(bed: Bed) -> None:
    count = "grep ^Seccomp: /proc/self/status"
    assert (await bed.sh(count)).split() == ["Seccomp:", "2"]
    assert (await bed.sh(count, seccomp="unconfined")).split() == ["Seccomp:", "0"]
    profile = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                {
                    "names": ["chmod", "fchmodat"],
                    "action": "SCMP_ACT_ERRNO",
                    "includes": {"caps": ["CAP_SYS_TIME"]},
                },
            ],
        }
    )
    said = await bed.sh("mkdir /x; chmod 700 /tmp && echo changed", seccomp=profile)
    assert "Operation not permitted" in said and "changed" in said.splitlines()  # two streams, in any order
