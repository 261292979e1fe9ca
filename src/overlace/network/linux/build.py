"""Builds the eBPF objects: `python -m overlace.network.linux.build`. Needs clang and libbpf's headers.

Owns when and how bpf/*.c becomes bpf/*.o. Must not load anything.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "bpf"
OBJECT = SOURCES / "overlace.o"
OBJECT6 = SOURCES / "overlace6.o"  # the same programs for IPv6 inside the overlay
SOCKET = SOURCES / "socket.o"  # services at the socket level
SOCKET6 = SOURCES / "socket6.o"
OBJECTS = (OBJECT, OBJECT6, SOCKET, SOCKET6)
OVER_IPV6 = tuple(path.with_stem(f"{path.stem}_over6") for path in OBJECTS)  # the same for tunnels over IPv6


class BuildError(RuntimeError):
    """clang is missing or refused; the message holds its output."""


def is_current() -> bool:
    """True when the objects are newer than every source file."""
    if not all(target.exists() for target in (*OBJECTS, *OVER_IPV6)):
        return False
    built = min(target.stat().st_mtime for target in (*OBJECTS, *OVER_IPV6))
    return all(source.stat().st_mtime <= built for source in list(SOURCES.glob("*.[ch]")))


def ensure_built(force: bool = False, *, over_ipv6: bool = False) -> tuple[Path, ...]:
    """Build when a source is newer than an object; return the objects' paths, as OBJECTS or OVER_IPV6 has them.

    Raises BuildError when it must build and cannot.
    """
    if force or not is_current():
        for target in (*OBJECTS, *OVER_IPV6):
            _build(target)
    return OVER_IPV6 if over_ipv6 else OBJECTS


def _build(target: Path) -> None:
    # clang's bpf target does not know the host's multiarch include directory, where asm/types.h is.
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    command = [
        os.environ.get("CLANG", "clang"), "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
        "-target", "bpf", "-mcpu=v3", f"-I/usr/include/{platform.machine()}-linux-gnu",
        f"-ffile-prefix-map={SOURCES}=.", "-c", str(target.with_suffix(".c")), "-o", str(partial),
    ]  # fmt: skip
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as e:
        raise BuildError(
            f"{command[0]} not found: install clang and libbpf-dev to build {target.name}"
        ) from e
    if run.returncode:
        raise BuildError(f"{' '.join(command)}\n{run.stderr}")
    os.replace(partial, target)


def main() -> int:
    """Build if needed and say where the object is."""
    try:
        print(*ensure_built(force="--force" in sys.argv[1:]), *ensure_built(over_ipv6=True))
    except BuildError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
