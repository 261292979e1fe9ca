"""Who is let into a swarm: hosts there can be a tunnel to."""

from __future__ import annotations

import pytest

from overlace.manager.enrol import explain_apart
from overlace.model.objects import Node, NodeDescription
from overlace.store.base import Put
from overlace.store.memory import MemoryStore

FOUR, SIX = "172.28.1.12", "fd00:28::12"


def described(address: str, os: str = "linux", name: str = "beta") -> NodeDescription:
    return NodeDescription(hostname=name, os=os, architecture="x86_64", underlay_address=address)


@pytest.mark.parametrize(
    ("there", "joining", "os", "words"),
    [
        (FOUR, "172.28.1.13", "linux", ()),
        (SIX, "fd00:28::13", "linux", ()),
        (SIX, "", "linux", ()),
        (
            SIX,
            FOUR,
            "linux",
            (
                f"{FOUR} of this host is IPv4",
                f"{SIX} of alpha is IPv6",
                "--data-path-addr and an IPv6 address",
            ),
        ),
        (FOUR, SIX, "linux", (f"{SIX} of this host is IPv6", f"{FOUR} of alpha is IPv4", "an IPv4 address")),
        (
            SIX,
            FOUR,
            "windows",
            (f"alpha: {SIX}", f"the HNS of a Windows host ({FOUR}) tunnels over IPv4 alone"),
        ),
    ],
)
async def test_one_swarm_has_one_family_of_data_path_addresses(
    there: str, joining: str, os: str, words: tuple[str, ...]
) -> None:
    store = MemoryStore()
    await store.commit([Put(Node(id="a", description=described(there, name="alpha"))), Put(Node(id="gone"))])
    said = explain_apart(store.view(), described(joining, os))
    assert bool(said) == bool(words) and all(word in said for word in words), said
    assert not explain_apart(store.view(), None)


async def test_a_removed_host_keeps_nobody_out() -> None:
    store = MemoryStore()
    await store.commit([Put(Node(id="a", description=described(SIX), removed=True))])
    assert not explain_apart(store.view(), described(FOUR))
