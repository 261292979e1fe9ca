"""Counting what the data path holds and carried, for metrics.

Owns the reading; a scrape costs one look into each container's namespace and one pass over the connection tables. Must
not know networks' names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from overlace.network.base import Inside
from overlace.network.counted import Carried, Hit
from overlace.network.vfp.flows import TableFill

from .bpf_syscall import Map, possible_cpus
from .maps import EVICTING, REASONS, TABLE_MAPS
from .netns import run_inside

CONNECTIONS = ("unified_flows", "flows", "allowed", "unified_flows6", "flows6", "allowed6")


def read_interfaces(text: str) -> dict[str, tuple[int, int, int, int]]:
    """/proc/net/dev (proc(5)): interface -> bytes and packets received, bytes and packets sent."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        n = rest.split()
        found[name.strip()] = (int(n[0]), int(n[1]), int(n[8]), int(n[9]))
    return found


def carried(inside: Iterable[Inside]) -> list[Carried]:
    """One look per namespace; a container that went meanwhile is left out."""
    by_sandbox: dict[Path, list[Inside]] = {}
    for one in inside:
        by_sandbox.setdefault(one.sandbox, []).append(one)
    found = []
    for sandbox, interfaces in by_sandbox.items():
        try:
            seen = read_interfaces(run_inside(sandbox, Path("/proc/thread-self/net/dev").read_text))
        except OSError:
            continue
        found += [Carried(i.endpoint_id, *seen[i.ifname]) for i in interfaces if i.ifname in seen]
    return found


def drops(table: Map) -> dict[tuple[int, str], int]:
    """Map `drops`: struct dropped -> packets."""
    found = {}
    for key, value in table.items():
        vni, reason = struct.unpack("II", key)
        word = REASONS[reason] if reason < len(REASONS) else str(reason)
        found[(vni, word)] = struct.unpack("Q", value)[0]
    return found


def fill(maps: Mapping[str, Map], known: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """`known`: rows of the tables as they should be; connection tables are counted."""
    found = {name: (rows, maps[name].max_entries) for name, rows in known.items()}
    for name in CONNECTIONS:
        found[name] = (sum(1 for _ in maps[name].items()), maps[name].max_entries)
    return found


def table_fill(maps: Mapping[str, Map]) -> list[TableFill]:
    """How full each table is. Counting reads a table whole."""
    found = []
    for name in (*TABLE_MAPS, *EVICTING):
        table = maps[name]
        rows, evicts = table.count(), name in EVICTING
        # each processor of an evicting table holds up to so many rows ready to be taken (LOCAL_FREE_TARGET)
        ready = min(128 * possible_cpus(), table.max_entries // 2) if evicts else 0
        full = rows >= table.max_entries - ready
        found.append(TableFill(name=name, rows=rows, capacity=table.max_entries, evicts=evicts, is_full=full))
    return found


def counters(table: Map) -> dict[str, int]:
    """Map `counters`: reason -> packets, of all processors."""
    found = {}
    for index, name in enumerate(REASONS):
        raw = table.lookup(struct.pack("I", index)) or b""
        found[name] = sum(struct.unpack(f"{len(raw) // 8}Q", raw))
    return found


def hits(table: Map) -> list[Hit]:
    """Map `hits`: struct hit_key -> struct hit of all processors."""
    found = []
    for key, value in table.items():
        number, ifindex, rule = struct.unpack("QII", key)
        each = struct.unpack(f"{len(value) // 8}Q", value)
        found.append(Hit(number, ifindex, rule, sum(each[0::3]), sum(each[1::3]), sum(each[2::3])))
    return found
