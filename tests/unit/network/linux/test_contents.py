"""What is in the kernel's tables after something failed: an entry no row can hold, a write halfway, a full table."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlace.network.linux.bpf_syscall import Map
from overlace.network.linux.contents import Contents, merge
from overlace.network.linux.maps import ACCESS_RULES, FLOOD_TARGETS, TABLE_MAPS, Attachment, encode
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import (
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Entry,
    Flood,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    Tables,
)

MAC = "02:42:0a:00:01:06"
REMOTE = RemoteEndpoint(4097, "10.0.1.6", MAC, "172.28.1.12")
FRONT = Frontend(4097, "10.0.1.99", 6, 80, (Backend(4097, "10.0.1.6", 80),))
LOCAL = LocalEndpoint(4097, "10.0.1.2", 24, "02:42:0a:00:01:02", "E1")


class Table:
    """A map of the kernel: a batch stops at what finds no room, after what came before it. `breaks`: so many rows more
    are written or removed, then nothing is."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel, self.name = kernel, name
        self.rows: dict[bytes, bytes] = {}
        self.room = 1 << 20

    def put_many(self, rows: Mapping[bytes, bytes]) -> None:
        for key, value in rows.items():
            self.kernel.step()
            if key not in self.rows and len(self.rows) >= self.room:
                code = errno.ENOSPC if self.name in ("routes", "subnets") else errno.E2BIG
                raise OSError(code, f"map {self.name} is full: it holds {self.room} rows")
            self.rows[key] = value

    def delete_many(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.kernel.step()
            self.rows.pop(key, None)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return iter(dict(self.rows).items())

    def lookup(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        self.rows[key] = value


class Kernel:
    def __init__(self) -> None:
        self.tables = {name: Table(self, name) for name in (*TABLE_MAPS, "generation")}
        self.breaks: int | None = None

    def step(self) -> None:
        if self.breaks is not None:
            self.breaks -= 1
            if self.breaks < 0:
                self.breaks = None
                raise OSError(errno.ENOMEM, "no memory")

    def map(self, name: str) -> Map:
        return cast(Map, self.tables[name])

    @property
    def generation(self) -> bytes | None:
        return self.tables["generation"].rows.get(bytes(4))

    def dump(self) -> dict[str, dict[bytes, bytes]]:
        return {name: self.tables[name].rows for name in TABLE_MAPS}


def _rows(entries: Iterable[Entry], attached: Mapping[str, Attachment]) -> Rows:
    """Of all that can be written, made from nothing."""
    out = Rows()
    for entry in entries:
        try:
            rows = encode(entry, attached)
        except ValueError:
            continue
        out.replace((), rows)
    return out


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def held(kernel: Kernel) -> Contents:
    contents = Contents(kernel.map)
    contents.write(contents.change((REMOTE, FRONT, LOCAL), ()))
    return contents


BAD: list[Entry] = [
    RemoteEndpoint(4097, "10.0.1.7", "no MAC", "172.28.1.12"),
    RemoteEndpoint(1 << 32, "10.0.1.7", MAC, "172.28.1.12"),
    RemoteEndpoint(4097, "fe80::1%eth0", MAC, "172.28.1.12"),
    AccessList(4097, "10.0.1.2", "IN", (AccessRule("allow"),) * (ACCESS_RULES + 1)),
    Flood(4097, 1, tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(FLOOD_TARGETS + 1)), (), ()),
    Frontend(4097, "10.0.1.98", 6, 1 << 16, (Backend(4097, "10.0.1.6", 80),)),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda e: f"{type(e).__name__}-{BAD.index(e)}")
@pytest.mark.parametrize("whole", [False, True], ids=["delta", "all"])
def test_what_no_row_can_hold_keeps_nothing_else_out(
    kernel: Kernel, held: Contents, bad: Entry, whole: bool
) -> None:
    other = RemoteEndpoint(4097, "10.0.1.8", MAC, "172.28.1.13")
    if whole:
        held.replace(Tables((REMOTE, LOCAL, bad, other)))
    else:
        held.write(held.change((bad, other), (FRONT.key,)))
    assert not _rows((REMOTE, LOCAL, other), {}).difference(kernel.dump())
    assert set(held.refused) == {bad.key}
    assert set(held.tables) == {REMOTE, LOCAL, other}
    held.write(held.change((), (bad.key,)))
    assert not held.refused


def test_among_many_the_one_that_no_row_can_hold_is_left_out(kernel: Kernel, held: Contents) -> None:
    many = [RemoteEndpoint(4097, f"10.0.2.{n}", MAC, "172.28.1.12") for n in range(1, 200)]
    bad = RemoteEndpoint(4097, "10.0.2.77", "no MAC", "172.28.1.12")
    wrong = [e if e.key != bad.key else bad for e in many]
    held.write(held.change(wrong, ()))
    assert set(held.refused) == {bad.key}
    assert len(kernel.tables["endpoints"].rows) == 3 + 198
    held.write(held.change([e for e in many if e.key == bad.key], ()))
    assert not held.refused
    assert not _rows((REMOTE, FRONT, LOCAL, *many), {}).difference(kernel.dump())


def test_an_interface_that_comes_and_goes_after_a_wrong_entry_loses_no_row(
    kernel: Kernel, held: Contents
) -> None:
    """A pass over everything met what no row can hold; the next container that ends is no reason to empty the tables."""
    held.replace(Tables((REMOTE, FRONT, LOCAL, BAD[0])))
    entries = held.local("E1")
    held.write(held.change((), [e.key for e in entries]))
    held.attached["E1"] = Attachment(7, 8)
    held.write(held.change(entries, ()))
    assert not _rows((REMOTE, FRONT, LOCAL), held.attached).difference(kernel.dump())


def test_a_pass_that_cannot_read_the_tables_changes_nothing(
    kernel: Kernel, held: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> dict[str, dict[bytes, bytes]]:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as m:
        m.setattr(held, "dump", unreadable)
        with pytest.raises(OSError, match="no memory"):
            held.replace(Tables((REMOTE,)))
    held.write(held.change((), ()))
    assert not _rows((REMOTE, FRONT, LOCAL), {}).difference(kernel.dump())


def test_a_full_table_takes_what_replaces_its_rows(kernel: Kernel, held: Contents) -> None:
    table = kernel.tables["endpoints"]
    table.room = len(table.rows)
    moved = RemoteEndpoint(4097, "10.0.1.9", MAC, "172.28.1.12")
    held.write(held.change((moved,), (REMOTE.key,)))
    assert not _rows((moved, FRONT, LOCAL), {}).difference(kernel.dump())


def test_a_full_table_keeps_nothing_from_the_others(kernel: Kernel, held: Contents) -> None:
    table = kernel.tables["endpoints"]
    table.room = len(table.rows)
    more = RemoteEndpoint(4097, "10.0.1.9", MAC, "172.28.1.12")
    network = Network(4097, ("10.0.1.0/24",), "", "")
    port = Frontend(0, "172.28.1.11", 6, 8080, FRONT.backends)
    later = RemoteEndpoint(4097, "10.0.1.6", MAC, "172.28.1.13")  # no new row
    with pytest.raises(OSError, match="endpoints is full: it holds 3 rows"):
        held.write(held.change((more, network, port, later), ()))
    assert not _rows((FRONT, LOCAL, network, port, later), {}).difference(kernel.dump())
    table.room += 1
    held.write(held.change((), ()))
    assert not _rows((FRONT, LOCAL, network, port, later, more), {}).difference(kernel.dump())


def test_rows_of_a_write_that_failed_halfway_are_decided_anew(kernel: Kernel, held: Contents) -> None:
    """The connections that went by what the rows said before: the write that finds nothing left to do says so too."""
    kernel.tables["endpoints"].room = 3
    more = RemoteEndpoint(4097, "10.0.1.9", MAC, "172.28.1.12")
    with pytest.raises(OSError, match="full"):
        held.write(held.change((more,), ()))
    before = kernel.generation
    held.write(held.change((), (more.key,)))
    assert kernel.generation != before


_vni = st.sampled_from([4096, 4097])
_address = st.builds(
    lambda n, six: f"fd00:1::{n}" if six else f"10.0.1.{n}", st.integers(2, 7), st.booleans()
)
_mac = st.sampled_from([MAC, "02-42-0A-00-01-07", "02:42:0a:00:01:06", "no MAC"])
_backends = st.lists(
    st.builds(Backend, _vni, st.sampled_from(["10.0.1.2", "10.0.1.3"])), max_size=2, unique=True
)
_entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(RemoteEndpoint, _vni, _address, _mac, st.sampled_from(["172.28.1.12", "172.28.1.13"])),
    st.builds(
        lambda v, a, mac, nat: LocalEndpoint(v, a, 24, mac, f"E{v}/{a}", outbound_nat=nat, inbound=nat, outbound=nat),
        _vni, _address, _mac, st.booleans(),
    ),
    st.builds(lambda v, b: Frontend(v, "10.0.1.99", 6, 80, tuple(b), affinity=len(b)), _vni, _backends),
    st.builds(lambda v, m: Network(v, ("10.0.1.0/24", "fd00:1::/64"), "10.0.1.1", m), _vni, _mac),
    st.builds(lambda v, n: Flood(v, 5, tuple(f"10.0.1.{i}" for i in range(n)), (), ()), _vni, st.integers(0, 3)),
    st.builds(
        lambda v, n: AccessList(v, "10.0.1.2", "IN", (AccessRule("allow", 6, ("10.0.1.0/24",)),) * n),
        _vni, st.sampled_from([0, 1, 2, ACCESS_RULES, ACCESS_RULES + 1]),
    ),
)  # fmt: skip
_steps = st.lists(
    st.tuples(
        st.lists(_entries, max_size=6, unique_by=lambda e: e.key),
        st.lists(_entries, max_size=4),
        st.sampled_from(["delta", "delta", "attach", "replace"]),
        st.one_of(st.none(), st.none(), st.integers(0, 12)),  # what is written before a failure
        st.one_of(st.none(), st.tuples(st.sampled_from(["endpoints", "ports", "backends", "floods"]), st.integers(0, 4))),
    ),
    max_size=10,
)  # fmt: skip
OWN = "E4096/10.0.1.2"
_Step = tuple[list[Entry], list[Entry], str, int | None, tuple[str, int] | None]


def _check(kernel: Kernel, want: Rows, *, full: bool) -> None:
    left = want.difference(kernel.dump())
    assert not any(left.remove.values())
    for name, rows in left.put.items():
        table = kernel.tables[name]
        assert not rows or (full and len(table.rows) >= table.room and table.rows.keys().isdisjoint(rows))


@settings(deadline=None)
@given(_steps)
def test_after_any_failures_the_tables_come_to_what_is_wanted(steps: list[_Step]) -> None:
    """Deltas, interfaces that come, passes over everything; entries no row can hold, writes that fail halfway, full
    tables. A table that is full has what fits, with nothing old in it, and no other table lacks anything."""
    kernel = Kernel()
    held, desired = Contents(kernel.map), Tables()
    for n, (put, gone, how, breaks, small) in enumerate(steps):
        for table in kernel.tables.values():
            table.room = 1 << 20
        if small is not None:
            kernel.tables[small[0]].room = small[1]
        delta = Delta(tuple(put), tuple({e.key for e in gone} - {e.key for e in put}))
        desired.apply(delta)
        kernel.breaks = breaks
        failure: OSError | None = None
        try:
            if how == "replace":
                held.replace(desired)
            elif how == "attach":
                entries = held.local(OWN)
                first = held.change((), [e.key for e in entries])
                held.attached[OWN] = Attachment(100 + n, n)
                again = held.change(entries, ())
                held.write(merge(merge(first, again), held.change(delta.put, delta.remove)))
            else:
                held.write(held.change(delta.put, delta.remove))
        except OSError as e:
            failure = e
        kernel.breaks = None
        if failure is None or failure.errno != errno.ENOMEM:
            _check(kernel, _rows(desired, held.attached), full=failure is not None)
    for table in kernel.tables.values():
        table.room = 1 << 20
    held.write(held.change((), ()))
    assert not _rows(desired, held.attached).difference(kernel.dump())
    assert {e.key for e in desired} == {e.key for e in held.tables} | held.refused.keys()
