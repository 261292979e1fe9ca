"""What a host's data path carried and holds, counted.

Owns the records. Must not know where they are read from.
"""

from __future__ import annotations

import msgspec


class Carried(msgspec.Struct, frozen=True):
    """Of one container's interface since it was made, as the container sees it."""

    endpoint_id: str
    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


class Hit(msgspec.Struct, frozen=True):
    """What counted for one rule of an endpoint's access list. `list`: the list's number; `rule`: the rule's place in it,
    or access.NO_RULE; `connections`: first packets, refused ones among them; `bytes`: of IP packets."""

    list: int
    ifindex: int  # of the endpoint's port
    rule: int
    connections: int
    packets: int
    bytes: int
    endpoint_id: str = ""
    is_late: bool = False  # carried by a flow and not yet among the rule's own, which never fall


class Held(msgspec.Struct, frozen=True):
    """Everything of a moment. `drops`: (VNI, reason) -> packets; `fill`: table -> (rows, room)."""

    carried: tuple[Carried, ...]
    drops: dict[tuple[int, str], int]
    fill: dict[str, tuple[int, int]]
