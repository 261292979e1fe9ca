"""Which processes a container has, as this host's ps(1) tells of them (moby daemon/top_unix.go).

Owns the choice of lines. Must not know how ps is asked for by people.
"""

from __future__ import annotations

from pathlib import Path

from overlace.model.errors import InvalidArgument
from overlace.runtime.oci.process import require_tool, run_tool

_SECONDS = 10.0


def cgroup_pids(cgroup: str) -> frozenset[int]:
    """The processes of a cgroup and those below it (v1: by the pids controller)."""
    found: set[int] = set()
    for root in (Path(f"/sys/fs/cgroup/pids{cgroup}"), Path(f"/sys/fs/cgroup{cgroup}")):
        for file in root.rglob("cgroup.procs"):
            try:
                found |= {int(line) for line in file.read_text().split()}
            except OSError:
                continue
    return frozenset(found)


async def top(cgroup: str, arguments: str) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of `ps ARGUMENTS` for the container's processes. Raises InvalidArgument with ps's words."""
    finished = await run_tool([require_tool("ps", "procps"), *arguments.split()], timeout=_SECONDS)
    if finished.code != 0:
        said = (finished.stderr or "no message").splitlines()[0]
        raise InvalidArgument(f"error running ps {arguments}: {said}")
    return choose_rows(finished.stdout.decode("utf-8", "replace"), cgroup_pids(cgroup))


def choose_rows(text: str, pids: frozenset[int]) -> tuple[list[str], list[list[str]]]:
    """Pure. The last column keeps its spaces. Raises InvalidArgument when there is no column PID."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidArgument("Couldn't find PID field in ps output: ask for the column pid too")
    at = titles.index("PID")
    rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
    return titles, [row for row in rows if len(row) > at and row[at].isdigit() and int(row[at]) in pids]
