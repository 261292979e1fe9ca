"""A Windows Python on Linux: where `scripts/windows` put it, and how a program is run by it.

Owns the command line and environment Wine needs. Must not install anything. Wine is not Windows: what runs here are the
official CPython for Windows and our own DLLs, on Wine's implementation of the rest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from overlace.model.errors import Unavailable


def home() -> Path:
    """Where it is: $OVERLACE_WINDOWS, else beside this Python."""
    return Path(os.environ.get("OVERLACE_WINDOWS") or Path(sys.prefix) / "windows")


def ensure_current(scripts: Path = Path(__file__).parents[4] / "scripts") -> None:
    """Raises Unavailable when there is no Windows Python, or one that was prepared for other packages than this source
    asks for: it would end in an ImportError far from here. `scripts`: the source's folder of that name."""
    if not (home() / "python" / "python.exe").exists():
        raise Unavailable(f"no Windows Python in {home()}: run scripts/windows")
    lists = [scripts / "windows-python.txt", scripts / "windows-wheels.txt"]
    stamp = home() / ".wanted"  # sha256sum's line of both, scripts/windows
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in lists)).hexdigest()
    if not stamp.exists() or stamp.read_text().split()[:1] != [wanted]:
        raise Unavailable(
            f"the Windows Python in {home()} was prepared for other packages than this source needs: run scripts/windows"
        )


def windows_path(path: Path) -> str:
    """Wine shows the file system as drive Z."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


def environment(prefix: Path | None = None) -> dict[str, str]:
    """Of a program under Wine; `prefix`: another than the prepared one."""
    return {
        "WINEPREFIX": str(prefix or home() / "prefix"),
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
    }


def command(script: Path, arguments: Sequence[str], output: Path) -> list[str]:
    """Run `script` by the Windows Python; what it prints goes to `output`. Raises Unavailable where there is none."""
    return python_command([windows_path(script), *arguments], output)


def python_command(arguments: Sequence[str], output: Path, *, append: bool = False) -> list[str]:
    """Run the Windows Python with `arguments`, its output to a file (it dies of redirections other than cmd's). Raises
    Unavailable where there is none."""
    ensure_current()
    line = [
        windows_path(home() / "python" / "python.exe"),
        *arguments,
        ">>" if append else ">",
        windows_path(output),
        "2>&1",
        "<",
        "NUL",
    ]
    return [_wine(), "cmd", "/c", " ".join(line)]


def program(path: Path, arguments: Sequence[str]) -> list[str]:
    """Run a Windows program other than Python. Raises Unavailable where there is no Wine."""
    return [_wine(), str(path), *arguments]


def _wine() -> str:
    found = shutil.which("wine64") or "/usr/lib/wine/wine64"
    if not Path(found).exists():
        raise Unavailable("no Wine on this host: run scripts/windows")
    return found


def sources() -> list[str]:
    """What the Windows Python has to find: our own source and its wheels."""
    return [windows_path(Path(__file__).parents[3]), windows_path(home() / "site")]
