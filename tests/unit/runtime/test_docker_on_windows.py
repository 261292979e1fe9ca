"""What a Windows container is made of, and what is refused before an engine is asked."""

from __future__ import annotations

import io
import ntpath
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.model.errors import InvalidArgument
from overlace.runtime.base import ContainerConfig, FileMount, Image, Mount, Platform
from overlace.runtime.docker.on_windows import Windows, archive, check, command_line, create_body, target_of
from overlace.runtime.docker.system import Asked
from overlace.runtime.oci.records import Places

HOST = Platform("windows", "amd64", "10.0.20348.2527")


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(**({"id": "a" * 64, "name": "web.1", "image": "web:1", "netns": ""} | fields))


def image(build: str, **fields: Any) -> Image:
    return Image(
        "sha256:1", (), (), Platform("windows", "amd64", build), "", 0, {"Cmd": ["web.exe"]}, **fields
    )


def members(made: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize(
    ("wished", "target"),
    [
        ("/run/secrets/token", "C:\\ProgramData\\Docker\\secrets\\token"),
        ("/run/secrets/a/b", "C:\\ProgramData\\Docker\\secrets\\a\\b"),
        ("/web.config", "C:\\web.config"),
        ("c:/app/key.pem", "C:\\app\\key.pem"),
        ("C:\\app\\..\\key.pem", "C:\\key.pem"),
        ("/run/secrets/../../etc/x", "C:\\ProgramData\\etc\\x"),
    ],
)
def test_files_go_where_docker_has_them_on_windows(wished: str, target: str) -> None:
    assert target_of(FileMount(wished, b"")) == target


@pytest.mark.parametrize("wished", ["D:\\key", "key.pem", "C:key"])
def test_a_file_elsewhere_is_refused(wished: str) -> None:
    with pytest.raises(InvalidArgument, match="absolute path on drive C"):
        target_of(FileMount(wished, b""))


@given(
    st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=4, unique=True), st.booleans()
)
def test_every_link_leads_to_its_file(parts: list[str], secret: bool) -> None:
    target = "C:\\" + "\\".join(parts)
    (name, link), *_ = members(archive(config(files=(FileMount(target, b"x", secret=secret),)))).items()
    assert link.issym() and "C:\\" + name.replace("/", "\\") == target
    where = ntpath.normpath(ntpath.join(ntpath.dirname(target), link.linkname))
    assert where == f"C:\\ProgramData\\Docker\\internal\\{'secrets' if secret else 'configs'}\\0"


def test_no_secret_is_in_what_is_put_into_the_container() -> None:
    made = archive(config(files=(FileMount("/run/secrets/s", b"hush"),), hosts=(("web", "10.0.0.2"),)))
    assert b"hush" not in made and b"10.0.0.2\tweb\r\n" in made
    assert set(members(made)) == {"ProgramData/Docker/secrets/s", "Windows/System32/drivers/etc/hosts"}


def test_two_files_at_one_place_are_refused() -> None:
    files = (FileMount("C:\\a", b"1"), FileMount("c:/A", b"2"))
    with pytest.raises(InvalidArgument, match="Duplicate mount point: c:/A"):
        archive(config(files=files))


def test_nothing_is_put_into_a_container_without_files_and_hosts() -> None:
    assert archive(config()) == b""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cap_drop": ("ALL",)}, "--cap-drop"),
        ({"ulimits": (1,)}, "--ulimit"),
        ({"groups": ("7",)}, "--group"),
        ({"swap": -1}, "--memory-swap"),
        ({"swappiness": 0}, "swappiness"),
        ({"seccomp": "unconfined"}, "seccomp"),
        ({"resolv_conf": "options ndots:2\n"}, "--dns-option"),
        ({"mounts": (Mount("bind", "C:\\a", "C:\\b", propagation="rshared"),)}, "bind propagation"),
        ({"mounts": (Mount("volume", "C:\\a", "v", volume_options={"type": "nfs"}),)}, "volume options"),
    ],
)
def test_what_windows_has_not_names_the_option(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check(config(**fields))
    check(config())


def test_the_body_leaves_to_the_image_what_is_not_said() -> None:
    made = create_body(
        config(args=("x",), resolv_conf="search a b\n", isolation="process"), {}, "C:\\o", (1, 45)
    )
    assert "Entrypoint" not in made and made["Cmd"] == ["x"] and "User" not in made
    host = made["HostConfig"]
    assert (host["NetworkMode"], host["DnsSearch"], host["Isolation"]) == ("none", ["a", "b"], "process")
    assert not {"PidsLimit", "CapAdd", "ReadonlyRootfs", "SecurityOpt", "Init", "MemorySwap"} & set(host)


def test_an_entrypoint_of_ones_own_drops_the_images_command() -> None:
    found = {"Entrypoint": ["cmd", "/c"], "Cmd": ["dir"]}
    assert command_line(config(), found) == ("cmd", "/c", "dir")
    assert command_line(config(entrypoint=("x",)), found) == ("x",)
    with pytest.raises(InvalidArgument, match="no command"):
        command_line(config(), {})


def test_an_image_of_a_later_windows_is_refused_and_its_files_are_folders(tmp_path: Path) -> None:
    side = Windows(HOST)
    places = Places(tmp_path / "d", tmp_path / "e", "a" * 64)
    with pytest.raises(InvalidArgument, match=r"windows\(10.0.26100.1\)/amd64, this host runs windows"):
        side.make(Asked(config(), image("10.0.26100.1"), places, "o", (1, 45)))
    files = (FileMount("/run/secrets/s", b"hush"), FileMount("/c", b"conf", secret=False))
    made = side.make(Asked(config(files=files), image("10.0.20348.1"), places, "o", (1, 45)))
    mounts = {m["Target"]: Path(m["Source"]) for m in made.body["HostConfig"]["Mounts"]}
    assert {p.is_dir() for p in mounts.values()} == {True} and all(m.startswith("C:\\") for m in mounts)
    assert (mounts["C:\\ProgramData\\Docker\\internal\\secrets"] / "0").read_bytes() == b"hush"
    assert not side.is_released(places)
    side.release(places, made.argv, {}, "", ())
    assert side.is_released(places)


def test_signals_are_two() -> None:
    side = Windows(HOST)
    assert [side.signal(s) for s in ("9", "SIGKILL", "term", "15")] == ["KILL", "KILL", "TERM", "TERM"]
    with pytest.raises(InvalidArgument, match="SIGHUP"):
        side.signal("SIGHUP")
