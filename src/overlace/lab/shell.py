"""Running programs for the lab: one way to call, one way to fail.

Owns subprocess use and the words of its errors. Must not know labs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from overlace.model.errors import Internal


def run(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30, check: bool = True) -> str:
    """Run `argv` and return its stdout. Raises Internal with its stderr when it fails (and `check`) or
    takes too long.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError:
        raise Internal(f"{argv[0]} is not installed; `make setup` installs all that the lab needs") from None
    except subprocess.TimeoutExpired:
        raise Internal(f"{' '.join(argv)} did not end within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "and said nothing"
        raise Internal(f"{' '.join(argv)} failed with {done.returncode}: {said}")
    return done.stdout


def tail(path: str | Path, lines: int = 20) -> str:
    """The last lines of a log, indented; a sentence when there is none."""
    try:
        with open(path, "rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 16384))
            text = log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        text = []
    return "\n".join(f"    {line}" for line in text) or f"    ({path} is empty)"
