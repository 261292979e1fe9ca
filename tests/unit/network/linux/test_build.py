"""When the eBPF object is built again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlace.network.linux import build


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "overlace.c").write_text("int x;")
    (tmp_path / "types.h").write_text("")
    objects = tuple(tmp_path / f"{name}.o" for name in ("overlace", "overlace6", "socket", "socket6"))
    for path in objects:
        path.write_bytes(b"old " + path.stem.encode())
        os.utime(path, (200, 200))
    for name in ("overlace.c", "types.h"):
        os.utime(tmp_path / name, (100, 100))
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "OBJECTS", objects[:2])
    monkeypatch.setattr(build, "OVER_IPV6", objects[2:])
    return tmp_path


def test_a_current_object_needs_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", "/nonexistent")
    built = (*build.ensure_built(), *build.ensure_built(over_ipv6=True))
    assert [path.read_bytes() for path in built] == [
        b"old overlace", b"old overlace6", b"old socket", b"old socket6",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["overlace6.o", "socket6.o"])
def test_without_one_of_the_objects_it_needs_one(
    sources: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (sources / missing).unlink()
    monkeypatch.setenv("CLANG", "/nonexistent")
    with pytest.raises(build.BuildError, match="install clang"):
        build.ensure_built()


def test_a_newer_header_needs_one_and_its_absence_says_what_to_install(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(sources / "types.h", (300, 300))
    monkeypatch.setenv("CLANG", "/nonexistent")
    with pytest.raises(build.BuildError, match="install clang"):
        build.ensure_built()


def test_a_refusal_keeps_the_old_object(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(sources / "types.h", (300, 300))
    monkeypatch.setenv("CLANG", "/bin/false")
    with pytest.raises(build.BuildError):
        build.ensure_built()
    assert (sources / "overlace.o").read_bytes() == b"old overlace"
