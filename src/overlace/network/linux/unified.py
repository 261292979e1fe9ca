"""Unified flows in the kernel: the generation they are decided by, and reading them.

Owns the layout of `ways` and `generation` of bpf/types.h. Must not decide about packets.
"""

from __future__ import annotations

import struct

from .bpf_syscall import Map

_ZERO = bytes(4)


def renew(generation: Map) -> None:
    """Have every flow decided anew at its next packet: after the tables changed. Never 0, which is no generation."""
    (now,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    generation.update(_ZERO, struct.pack("I", (now + 1) & 0xFFFFFFFF or 1))
