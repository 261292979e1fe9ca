"""What an upgrade to another map layout takes over from the maps of the old one.

Owns which maps, and how their rows become rows of the new ones. What a struct of these maps may become is one rule: it
grows at its end, where a row of before has zeros; what cannot keep to that gets another name. A key stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from . import bpf_syscall as bpf

# What is remembered of connections and clients.
CARRIED = ("affinities", "flows", "allowed", "affinities6", "flows6", "allowed6")
# What is bound to living sockets cannot be copied: the map itself is kept, for as long as its struct stays what it is.
KEPT = ("choices", "choices6")
# What it means that one was not taken over, of either family.
LOST = {
    "affinities": "clients of services with session affinity may get another backend with their next connection",
    "flows": "connections to services and published ports end; new ones work",
    "allowed": "connections that only began under an earlier policy are judged anew",
    "choices": "open connections to services show their backend's address as their peer's",
}


def explain_sizes(key: tuple[int, int], value: tuple[int, int]) -> str:
    """Why a kept map cannot go on, from its bytes before and now; empty: it can."""
    for what, (before, now) in (("key", key), ("row", value)):
        if before != now:
            return f"a {what} had {before} bytes and has {now} now"
    return ""


def fit(value: bytes, size: int) -> bytes:
    """A row for a struct of `size` bytes, which began as this one's does: a later version's has more at its end, an
    earlier one's less."""
    return value[:size].ljust(size, b"\0")


def carry_rows(old: Path, maps: Mapping[str, bpf.Map]) -> dict[str, str]:
    """Bring to `maps` what those pinned in `old` know and they do not. Returns which could not be brought over, with
    the reason."""
    left = {}
    for name in CARRIED:
        try:
            before = bpf.Map(bpf.get_pinned(old / name), name)
        except FileNotFoundError:
            continue  # that version had none
        try:
            now = maps[name]
            if why := explain_sizes((before.key_size, now.key_size), (0, 0)):
                left[name] = why
                continue
            known = {key for key, _ in now.items()}
            rows = {key: value for key, value in before.items() if key not in known}
            now.put_many({key: fit(value, now.value_size) for key, value in rows.items()})
        finally:
            before.close()
    return left


def keep_maps(old: Path, maps: Path) -> None:
    """Have the maps that are kept pinned among the new ones, too."""
    for name in KEPT:
        try:
            kept = bpf.get_pinned(old / name)
        except FileNotFoundError:
            continue
        try:
            bpf.pin(kept, maps / name)
        finally:
            os.close(kept)


def let_go(pin: Path, key_size: int, value_size: int) -> str:
    """Take away a kept map's pin unless the object's struct is of the same size. Returns why, empty: it stays."""
    try:
        kept = bpf.Map(bpf.get_pinned(pin), pin.name)
    except FileNotFoundError:
        return ""
    try:
        why = explain_sizes((kept.key_size, key_size), (kept.value_size, value_size))
    finally:
        kept.close()
    if why:
        pin.unlink()
    return why
