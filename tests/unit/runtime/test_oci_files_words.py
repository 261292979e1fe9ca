"""Paths that stay inside their root, registries' words, hosts files, images made from files."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from overlace.model.errors import Internal, InvalidArgument, NotFound, Unavailable
from overlace.runtime.base import ContainerConfig, Platform, RegistryAuth
from overlace.runtime.oci.changes import ChangeFeed
from overlace.runtime.oci.files import read_scoped, scoped_path, tree_size, write_atomically
from overlace.runtime.oci.mkimage import Variant, write_layout
from overlace.runtime.oci.prepare import hosts_text, local_addresses
from overlace.runtime.oci.shim import StartRefused, start_error
from overlace.runtime.oci.skopeo import auth_document, pull_error, registry_words
from overlace.runtime.oci.spec import resolve


def test_links_in_an_image_never_lead_out_of_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("host")
    (root / "etc/real").write_text("inside")
    for name, target in (
        ("abs", "/etc/real"),
        ("up", "../../../../secret"),
        ("out", str(tmp_path / "secret")),
        ("loop", "loop"),
    ):
        (root / "etc" / name).symlink_to(target)
    (root / "link").symlink_to("/etc")
    assert scoped_path(root, "/link/abs") == root / "etc/real"
    assert read_scoped(root, "/link/abs") == "inside"
    assert scoped_path(root, "/etc/up") == root / "secret" and read_scoped(root, "/etc/up") == ""
    assert read_scoped(root, "/etc/out") == ""
    assert scoped_path(root, "/../../x") == root / "x"
    with pytest.raises(InvalidArgument, match="too many levels of symbolic links"):
        scoped_path(root, "/etc/loop")
    os.mkfifo(root / "etc/pipe")
    assert read_scoped(root, "/etc/pipe") == ""  # and does not wait for a writer


def test_atomic_writes_keep_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "d" / "f"
    with pytest.raises(Internal, match="No such file or directory"):
        write_atomically(path, b"x")
    path.parent.mkdir()
    write_atomically(path, b"one")
    write_atomically(path, b"two", sync=True)
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["f"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_registry_words_without_the_wrapping() -> None:
    raw = (
        'time="2026-11-23T12:00:00Z" level=fatal msg="Error parsing image name \\"docker://h:5/a:2\\": '
        "reading manifest 2 in "
        'h:5/a: manifest unknown: manifest unknown"'
    )
    assert registry_words(raw) == "reading manifest 2 in h:5/a: manifest unknown: manifest unknown"
    assert registry_words("") == "no message"
    assert isinstance(pull_error("a:2", raw), NotFound)
    assert str(pull_error("a:2", raw)).startswith("No such image: a:2 (")
    full = pull_error("a", 'level=fatal msg="writing blob: write /x: no space left on device"')
    assert isinstance(full, Unavailable) and "free disk space" in str(full)


def test_credentials_file() -> None:
    assert json.loads(auth_document("h:5", None)) == {"auths": {}}
    entry = json.loads(auth_document("h:5", RegistryAuth("me", "pw")))["auths"]["h:5"]
    assert base64.b64decode(entry["auth"]) == b"me:pw"
    assert (
        json.loads(auth_document("h", RegistryAuth(identity_token="t")))["auths"]["h"]["identitytoken"] == "t"
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ('exec: "/x": permission denied', 126),
        ("exec failed: exec format error", 126),
    ],
)
def test_a_program_that_cannot_run_is_the_callers_fault(words: str, code: int) -> None:
    error = start_error("runc create failed: unable to start container process: " + words)
    assert isinstance(error, StartRefused) and error.exit_code == code and error.status == 400


def test_other_failures_are_the_hosts() -> None:
    assert isinstance(start_error("mkdir /sys/fs/cgroup/x: no such file or directory"), Internal)


FIB = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.1.0
        /24 link UNICAST
     |-- 10.0.1.7
        /32 host LOCAL
     |-- 10.0.1.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
Local:
     |-- 10.0.1.7
        /32 host LOCAL
     |-- 172.18.0.3
        /32 host LOCAL
"""


def test_hosts_file_has_the_containers_own_name() -> None:
    assert local_addresses(FIB) == ("10.0.1.7", "172.18.0.3")
    config = ContainerConfig("a" * 64, "n", "i", "", hostname="me", hosts=(("db", "10.0.0.9"),))
    resolved = resolve(config, {"Cmd": ["x"]})
    text = hosts_text(config, resolved, ["10.0.1.7"])
    assert "127.0.0.1\tlocalhost\n" in text and "10.0.0.9\tdb\n" in text and "10.0.1.7\tme\n" in text
    own = ContainerConfig("a" * 64, "n", "i", "", hostname="me", hosts=(("me", "10.0.0.9"),))
    assert "10.0.1.7" not in hosts_text(own, resolved, ["10.0.1.7"])  # the caller's word counts


def test_images_are_reproducible_and_layouts_grow(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/x").write_bytes(b"#!/bin/sh\n")
    (root / "bin/y").symlink_to("x")
    one = [Variant(Platform("linux", "amd64"), root, {"Cmd": ["x"]})]
    two = [*one, Variant(Platform("windows", "amd64", "10.0.20348.1"), root, {"Cmd": ["x"]})]
    first = write_layout(tmp_path / "a", one, "1")
    os.utime(root / "bin/x", (1, 1))
    assert write_layout(tmp_path / "b", one, "1") == first
    index = write_layout(tmp_path / "a", two, "2")
    document = json.loads((tmp_path / "a/blobs/sha256" / index[7:]).read_text())
    assert [m["platform"].get("os.version") for m in document["manifests"]] == [None, "10.0.20348.1"]
    assert document["manifests"][0]["digest"] == first
    tags = [m["annotations"] for m in json.loads((tmp_path / "a/index.json").read_text())["manifests"]]
    assert tags == [{"org.opencontainers.image.ref.name": "1"}, {"org.opencontainers.image.ref.name": "2"}]
    with pytest.raises(InvalidArgument):
        write_layout(tmp_path / "c", [], "1")


async def test_a_slow_listener_hears_of_each_container_once() -> None:
    feed = ChangeFeed()
    slow, gone = feed.subscribe(), feed.subscribe()
    await gone.aclose()
    for name in ("a", "b", "a"):
        feed.put(name)
    assert [await anext(slow), await anext(slow)] == ["a", "b"]
    feed.put("a")
    feed.close()
    assert [item async for item in slow] == ["a"]
    assert [item async for item in gone] == []


def test_a_tree_weighs_each_file_once_and_follows_no_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * 1000)
    (root / "a").write_bytes(b"x" * 10)
    (root / "sub/b").write_bytes(b"x" * 5)
    os.link(root / "a", root / "sub/again")
    (root / "out").symlink_to(tmp_path / "outside")
    assert tree_size(root) == 15
    assert tree_size(tmp_path / "nothing") == 0
