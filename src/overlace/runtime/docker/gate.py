"""The gate of a container: where its first program waits until the network is attached.

Owns building hold.c and each container's folder that is seen inside as `/.overlace`. Level-triggered: the gate is open
when the file `go` is there, so that opening it twice, or after a crash, is the same.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from overlace.model.errors import FailedPrecondition, Internal
from overlace.runtime.oci import defaults
from overlace.runtime.oci.files import scoped_path

_SOURCE = Path(__file__).with_name("hold.c")
_PROGRAM = Path(__file__).with_name("hold.o")  # not a linkable object: the suffix is what the tree ignores


def ensure_hold() -> Path:
    """The program, built when it is older than its source. Raises FailedPrecondition with what is missing."""
    if _PROGRAM.exists() and _PROGRAM.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return _PROGRAM
    partial = _PROGRAM.with_suffix(f".{os.getpid()}.tmp")
    command = [os.environ.get("CC", "gcc"), "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-static"]
    try:
        run = subprocess.run(
            [*command, "-o", str(partial), str(_SOURCE)], capture_output=True, text=True, timeout=120
        )
    except FileNotFoundError:
        raise FailedPrecondition(
            f"{command[0]} not found: install gcc and libc6-dev to build {_SOURCE.name}"
        ) from None
    if run.returncode:
        raise FailedPrecondition(f"{' '.join(command)} {_SOURCE.name}: {run.stderr.strip()}")
    os.replace(partial, _PROGRAM)
    return _PROGRAM


class Gate:
    """One container's gate in `folder`, which must be where programs may be run from (not below a noexec /run)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Closed, with the program in it. Raises Internal with the system's words, FailedPrecondition."""
        program = ensure_hold()
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            (self.folder / "go").unlink(missing_ok=True)
            shutil.copyfile(program, self.folder / "hold")
            (self.folder / "hold").chmod(0o755)
            self.folder.chmod(0o755)
        except OSError as error:
            raise Internal(f"cannot write {error.filename}: {error.strerror}") from error

    @property
    def is_open(self) -> bool:
        return (self.folder / "go").exists()

    def open(self) -> None:
        """Let the program run. Raises Internal."""
        try:
            (self.folder / "go").touch(mode=0o444)
        except OSError as error:
            raise Internal(f"cannot write {self.folder}/go: {error.strerror}") from error

    def shut(self) -> None:
        """Before a start: what a run before the last reboot left open."""
        (self.folder / "go").unlink(missing_ok=True)


def why_not_run(root: Path, program: str, environment: Sequence[str], folder: str) -> str:
    """Why `program` cannot be run in the container with root file system `root` and working directory `folder`, in the
    words of Docker; empty when it can."""
    if "/" in program:
        places = [program]
    else:
        path = next(e for e in (*environment, defaults.PATH) if e.startswith("PATH="))[5:]
        places = [f"{part}/{program}" for part in path.split(":")]
    refused = ""
    for place in places:
        try:
            found = scoped_path(root, os.path.join("/", folder, place)).stat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o111:
            return ""
        refused = "permission denied"
    return refused or (
        "no such file or directory" if "/" in program else "executable file not found in $PATH"
    )


def append_hosts(path: Path, hosts: Sequence[tuple[str, str]]) -> None:
    """Add what is not there yet, in the file itself: it is mounted, so its inode must stay."""
    there = path.read_text()
    lines = [f"{address}\t{name}\n" for name, address in hosts]
    new = "".join(line for line in lines if line not in there)
    if new:
        with path.open("a") as file:
            file.write(new)


def main() -> int:
    """Build if needed and say where the program is."""
    try:
        print(ensure_hold())
    except FailedPrecondition as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
