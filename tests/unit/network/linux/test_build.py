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
    (tmp_path / "overlace.o").write_bytes(b"old")
    (tmp_path / "overlace6.o").write_bytes(b"old6")
    for name, at in (("overlace.c", 100), ("types.h", 100), ("overlace.o", 200), ("overlace6.o", 200)):
        os.utime(tmp_path / name, (at, at))
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "OBJECT", tmp_path / "overlace.o")
    monkeypatch.setattr(build, "OBJECT6", tmp_path / "overlace6.o")
    return tmp_path


def test_a_current_object_needs_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", "/nonexistent")
    assert [path.read_bytes() for path in build.ensure_built()] == [b"old", b"old6"]


def test_without_one_of_the_objects_it_needs_one(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "overlace6.o").unlink()
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
    assert (sources / "overlace.o").read_bytes() == b"old"
