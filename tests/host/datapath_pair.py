"""Two hosts with one network for the tests of daemons that come and go: container `one` on host a, `two` on host b.

Owns the world and what host a should hold of it. Must not restart anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from datapath_bed import Container, mac_of, made_bed, network

from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS
from overlace.network.vfp.tables import Backend, Entry, Frontend, RemoteEndpoint, Tables

NET = network(4097, "10.0.1.0/24")


@contextmanager
def made_pair(vip: Frontend) -> Iterator[SimpleNamespace]:
    """bed, a, b, one, two, vip; both containers serve on port 80, host a publishes one's as 8080."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5", outbound=True)
        two.join(NET, "10.0.1.6")
        bed.serve(one.path, 80, "one")
        bed.serve(two.path, 80, "two")
        bed.frontend(vip)
        a.put(published(a.address))
        yield SimpleNamespace(bed=bed, a=a, b=b, one=one, two=two, vip=vip)


def published(address: str) -> Frontend:
    """Port 8080 of the host with that address, for container one."""
    return Frontend(0, address, 6, 8080, (Backend(4097, "10.0.1.5", 80),))


def desired(world: SimpleNamespace) -> Tables:
    """What host a should hold."""
    remote = RemoteEndpoint(4097, "10.0.1.6", mac_of("10.0.1.6"), world.b.address)
    entries: list[Entry] = [NET, world.vip, published(world.a.address), remote, *world.one.endpoints]
    return Tables(entries)


def stamp(world: SimpleNamespace, index: int, number: int) -> None:
    """Have what is pinned look as if another version had pinned it: 0, its layout; 1, its programs."""
    pinned = bpf_syscall.get_pinned(BPFFS / "overlace" / world.a.instance / "maps" / "layout")
    layout = bpf_syscall.Map(pinned)
    layout.update(index.to_bytes(4, sys.byteorder), number.to_bytes(8, sys.byteorder))
    layout.close()
