"""Which Windows a lab host's registry says it is, and whether its Python is the one this source needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlace.lab.windows.prefix import with_version
from overlace.lab.windows.wine import ensure_current
from overlace.model.errors import Unavailable

REGISTRY = r"""WINE REGISTRY Version 2

[Software\\\\Microsoft\\\\Windows NT] 1
"Kept"="1"

[Software\\\\Microsoft\\\\Windows NT\\\\CurrentVersion] 2
#time=1dd
"CurrentBuildNumber"="7601"
"DigitalProductId"=hex:00,\\
  00
"SystemRoot"="C:\\\\windows"

[Software\\\\Microsoft\\\\Windows NT\\\\CurrentVersion\\\\Fonts] 3
"CurrentBuildNumber"="not this one"
""".replace("\\\\", "\\")


def test_the_version_is_replaced_and_all_else_stays() -> None:
    changed = with_version(REGISTRY, "10.0.20348.2527")
    assert '"CurrentBuildNumber"="20348"\n' in changed and "7601" not in changed
    assert '"UBR"=dword:000009df' in changed and '"CurrentMajorVersionNumber"=dword:0000000a' in changed
    for line in REGISTRY.splitlines():
        assert line in changed or "7601" in line
    assert changed.index('"UBR"') < changed.index("Fonts]")


def test_a_registry_without_the_key() -> None:
    with pytest.raises(Unavailable, match="run scripts/windows again"):
        with_version("WINE REGISTRY Version 2\n", "10.0.20348.2527")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scripts/windows has put a Python for what `scripts` asks for now."""
    monkeypatch.setenv("OVERLACE_WINDOWS", str(tmp_path / "windows"))
    scripts, python = tmp_path / "scripts", tmp_path / "windows" / "python"
    scripts.mkdir()
    python.mkdir(parents=True)
    (python / "python.exe").touch()
    (scripts / "windows-python.txt").write_text("winpython\n")
    (scripts / "windows-wheels.txt").write_text("click==1\n")
    line = subprocess.run(
        ["sha256sum"], input=b"winpython\nclick==1\n", capture_output=True, check=True
    ).stdout
    (tmp_path / "windows" / ".wanted").write_bytes(line.rstrip(b"\n"))
    return scripts


def test_a_windows_python_that_lacks_a_package_is_told_before_it_starts(prepared: Path) -> None:
    ensure_current(prepared)
    (prepared / "windows-wheels.txt").write_text("click==2\n")
    with pytest.raises(Unavailable, match="other packages than this source needs: run scripts/windows"):
        ensure_current(prepared)


@pytest.mark.parametrize("gone", [".wanted", "python/python.exe"])
def test_a_windows_python_that_is_not_whole_is_none(prepared: Path, gone: str) -> None:
    (prepared.parent / "windows" / gone).unlink()
    with pytest.raises(Unavailable, match="run scripts/windows"):
        ensure_current(prepared)
