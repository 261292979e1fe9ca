"""Many entries at once: packed together they are what they are one by one, and the tables end the same."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.network.linux import contents
from overlace.network.linux.contents import Contents
from overlace.network.linux.maps import (
    TABLE_MAPS,
    address_key,
    encode,
    encode_remotes,
)
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import Backend, Delta, Entry, Frontend, LocalEndpoint, RemoteEndpoint, Tables

REMOTE = RemoteEndpoint(4097, "10.0.1.6", "02:42:0a:00:01:06", "172.28.1.12")

_vni = st.sampled_from([4096, 4097])
_address = st.builds(
    lambda n, six: f"fd00:1::{n}" if six else f"10.0.1.{n}", st.integers(2, 9), st.booleans()
)
_remote = st.builds(
    RemoteEndpoint,
    _vni,
    _address,
    st.sampled_from(["02:42:0a:00:01:06", "02-42-0A-00-01-07"]),
    st.sampled_from(["172.28.1.12", "172.28.1.13"]),
)
_other: st.SearchStrategy[Entry] = st.one_of(
    st.builds(lambda v, a: LocalEndpoint(v, a, 24, "02:42:0a:00:01:02", f"E{v}{a}"), _vni, _address),
    st.builds(
        lambda v, b: Frontend(v, "fd00:1::99" if ":" in b else "10.0.1.99", 6, 80, (Backend(v, b),)),
        _vni,
        _address,
    ),
)
_deltas = st.lists(
    st.tuples(
        st.lists(_remote, max_size=6),
        st.lists(_other, max_size=2),
        st.lists(st.one_of(_remote, _other), max_size=4),
        st.booleans(),
    ),
    max_size=8,
)


@given(st.lists(_remote, min_size=1, max_size=20))
def test_packed_together_as_one_by_one(entries: list[RemoteEndpoint]) -> None:
    for family in (False, True):
        alike = [e for e in entries if (":" in e.address) == family]
        singly = [
            (address_key(e.vni, e.address), [r.value for r in encode(e, {})])
            for e in {(e.vni, e.address): e for e in alike}.values()
        ]
        assert encode_remotes(alike) == {key: value for key, (value,) in singly}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_deltas)
def test_changes_in_bulk_end_where_a_full_build_ends(
    monkeypatch: pytest.MonkeyPatch, deltas: list[tuple[list[RemoteEndpoint], list[Entry], list[Entry], bool]]
) -> None:
    """Whatever comes with them: a task that moves, a service, the same endpoint with another MAC."""
    monkeypatch.setattr(contents, "_MANY", 1)
    held = Contents(lambda name: pytest.fail(f"{name} is not to be opened"))
    tables = Tables()
    kernel: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLE_MAPS}
    for remotes, others, gone, removes in deltas:
        wanted = {} if removes else {e.key: e for e in (*remotes, *others)}
        delta = Delta(tuple(wanted.values()), tuple({e.key for e in gone} - wanted.keys() if removes else ()))
        changes = held.change(delta.put, delta.remove)
        tables.apply(delta)
        for name, items in changes.put.items():
            kernel[name].update(items)
        for name, keys in changes.remove.items():
            for key in keys:
                kernel[name].pop(key, None)
    full = Rows()
    full.replace((), [r for e in tables for r in encode(e, {})])
    assert not full.difference(kernel)
    assert not held.rows.difference(kernel)
    assert set(held.tables) == set(tables)


@pytest.mark.parametrize(
    ("address", "mac", "provider", "said"),
    [
        ("10.0.1", "02:42:0a:00:01:06", "172.28.1.12", "10.0.1"),
        ("10.0.1.7", "02:42:0a:00:01:06", "nowhere", "nowhere"),
        ("10.0.1.7", "02:42:0a:00:01", "172.28.1.12", "10.0.1.7"),
        ("fd00::7", "02:42:0a:00:01:07", "172.28.1.12", "fd00::7"),  # of another family than those with it
    ],
)
def test_what_is_no_address_is_named(address: str, mac: str, provider: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode_remotes([REMOTE, RemoteEndpoint(4097, address, mac, provider)])
