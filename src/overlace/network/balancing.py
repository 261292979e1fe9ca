"""At which level a host gives connections to services their backends: the words for it, and where cgroup v2 is.

Pure. Must not load or attach anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Wish = Literal["auto", "packet", "socket"]


class Balancing(msgspec.Struct, frozen=True):
    """`why`: at the packet level alone the reason, at the socket level the cgroup whose processes it is for."""

    level: Literal["packet", "socket"]
    why: str

    @property
    def words(self) -> str:
        """For people."""
        if self.level == "packet":
            return f"at the packet level ({self.why})"
        return f"at the socket level (cgroup {self.why}), at the packet level what it leaves alone"


def find_cgroup2(mountinfo: str) -> Path | None:
    """Where the whole of cgroup v2 is mounted, alone or beside v1 (hybrid), from /proc/self/mountinfo (proc(5))."""
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        fields = mount.split()
        if kind.split()[:1] == ["cgroup2"] and len(fields) > 4 and fields[3] == "/":
            return Path(fields[4].replace("\\040", " "))
    return None
