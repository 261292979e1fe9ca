"""What must stand on a host for its traffic to flow, besides rows in tables: devices, programs at their places, settings,
the nft table.

Owns the comparison of what should be with what is, and its sentences. host_side.py reads both and makes it good; the
maps' rows are audit.py's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from overlace.model.findings import Finding

from .underlay import Underlay

SETTINGS = {
    "ipv4/ip_forward": "1",
    # Answers to the host's own clients of published ports come back in through lo.
    "ipv4/conf/lo/accept_local": "1",
    "ipv4/conf/lo/route_localnet": "1",
}
MENDS = "the host's daemon makes it again within seconds; if it stays, start the daemon or read its log"


class Program(msgspec.Struct, frozen=True):
    """A program at its place: its id in the kernel, and an ifindex or a cgroup's id, 0: nowhere any more."""

    id: int
    where: int


class Standing(msgspec.Struct, frozen=True):
    """`programs`: by the link's name; `table`: what is missing in the nft table."""

    underlay: Underlay | None
    vxlan: int  # ifindex of a device that is up; 0: none
    programs: dict[str, Program]
    settings: dict[str, str]
    table: tuple[str, ...] = ()


def explain_standing(
    want: Standing, have: Standing, address: str, endpoints: dict[str, str]
) -> Iterator[Finding]:
    """`address`: the underlay's; `endpoints`: ids, by the names of their links."""
    if have.underlay is None:
        yield Finding(
            what=f"no interface carries the underlay address {address}: hosts do not reach each other",
            remedy=f"give the interface its address back: ip addr add {address}/… dev …",
        )
    elif want.underlay is not None and have.underlay.ifindex != want.underlay.ifindex:
        yield Finding(
            what=f"the underlay's interface {have.underlay.ifname} is another one than before "
            f"(interface {have.underlay.ifindex}, it was {want.underlay.ifindex})",
            remedy=MENDS,
        )
    if have.vxlan != want.vxlan or not have.vxlan:
        yield Finding(what="the vxlan device is gone, down or another one", remedy=MENDS)
    for name, program in want.programs.items():
        if have.programs.get(name) != program and (name != "underlay" or have.underlay is not None):
            id = endpoints.get(name, "")
            yield Finding(
                what=f"no program is attached to {_place(name, have.underlay)}",
                remedy=MENDS,
                about=(id,) if id else (),
            )
    for key, value in want.settings.items():
        if have.settings.get(key) != value:
            name = "net." + key.replace("/", ".")
            yield Finding(what=f"{name} is {have.settings.get(key) or 'not set'}, not {value}", remedy=MENDS)
    for what in have.table:
        yield Finding(what=what, remedy=MENDS)


def _place(name: str, underlay: Underlay | None) -> str:
    if name == "underlay" and underlay is not None:
        return f"the underlay's interface {underlay.ifname}"
    if name.endswith("-in"):
        return f"interface {name.removesuffix('-in')}, for what the host sends there"
    return f"the cgroup ({name})" if name.startswith("socket-") else f"interface {name}"
