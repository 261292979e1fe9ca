"""Builds the stand-ins that are C: `python -m overlace.lab.windows.build [--windows DIR]`.

Owns when and how. A shared object with gcc for the binding on Linux; with mingw the two DLLs for a Windows Python, and
the program that serves a Docker Engine's named pipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from overlace.model.errors import Unavailable

FOLDER = Path(__file__).parent
HEADER = FOLDER / "stand_in.h"
SOURCES = tuple(FOLDER / f"{name}.c" for name in ("computenetwork", "notifications", "texts", "wire"))
RANDOM = FOLDER / "bcryptprimitives.c"
PIPE_SOURCE = FOLDER / "pipe.c"
PIPE = "overlace-pipe.exe"
OBJECT = FOLDER / "computenetwork.so"
WARNINGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-cast-function-type")
MINGW = "x86_64-w64-mingw32-gcc"


def _compile(command: list[str], target: Path) -> Path:
    """Raises Unavailable when the compiler is missing or refuses."""
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        run = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} not found: install it to build {target.name}") from None
    if run.returncode:
        raise Unavailable(f"{' '.join(command)}\n{run.stderr}")
    os.replace(partial, target)
    return target


def ensure_object() -> Path:
    """The shared object, built when a source is newer. Raises Unavailable."""
    newest = max(path.stat().st_mtime for path in (HEADER, *SOURCES))
    if OBJECT.exists() and OBJECT.stat().st_mtime >= newest:
        return OBJECT
    command = [
        os.environ.get("CC", "gcc"),
        *WARNINGS,
        "-D_GNU_SOURCE",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
    ]
    return _compile([*command, *map(str, SOURCES), "-lpthread"], OBJECT)


def build_dlls(folder: Path) -> list[Path]:
    """computenetwork.dll, vmcompute.dll and the pipe's program for x86_64 Windows in `folder`, and bcryptprimitives.dll
    where the Wine has none; built where a source is newer. Raises Unavailable."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, flags, sources, libraries in (
        ("computenetwork.dll", (), SOURCES, ("ws2_32", "ole32")),
        ("vmcompute.dll", ("-DVMCOMPUTE",), SOURCES, ("ws2_32", "ole32")),
        ("bcryptprimitives.dll", (), (RANDOM,), ("advapi32",)),
    ):
        target = folder / name
        made.append(target)
        newest = max(path.stat().st_mtime for path in (HEADER, *sources))
        if target.exists() and (sources == (RANDOM,) or target.stat().st_mtime >= newest):
            continue  # a later Wine's own bcryptprimitives.dll is better than ours
        command = [MINGW, *WARNINGS, *flags, "-shared", "-static-libgcc", *map(str, sources)]
        _compile([*command, *(f"-l{library}" for library in libraries)], target)
    made.append(target := folder / PIPE)
    if not target.exists() or target.stat().st_mtime < PIPE_SOURCE.stat().st_mtime:
        _compile([MINGW, *WARNINGS, "-static", str(PIPE_SOURCE), "-lws2_32"], target)
    return made


def main() -> int:
    try:
        if sys.argv[1:2] == ["--windows"]:
            print(*build_dlls(Path(sys.argv[2])), sep="\n")
        else:
            print(ensure_object())
    except Unavailable as e:
        print(e.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
