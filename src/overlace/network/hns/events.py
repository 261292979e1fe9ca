"""What HNS tells its callbacks: the kinds of notification, and one event with its document.

Owns their numbers and shape. Must not know who listens (server.py).
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from overlace.network.hns.documents import Guid


class Notification(IntEnum):
    """HCN_NOTIFICATIONS; endpoints have no event before they are attached."""

    NETWORK_PRE_CREATE = 1
    NETWORK_CREATE = 2
    NETWORK_PRE_DELETE = 3
    NETWORK_DELETE = 4
    NAMESPACE_CREATE = 5
    NAMESPACE_DELETE = 6
    ENDPOINT_ATTACHED = 9
    ENDPOINT_DETACHED = 0x10
    SERVICE_DISCONNECT = 0x01000000


class Event(msgspec.Struct, frozen=True):
    """Something that happened. `network`: whose callbacks hear it, beside the service's."""

    type: Notification
    id: Guid
    network: Guid = ""
    data: object = None

    def document(self) -> bytes:
        """NotificationBase."""
        out: dict[str, object] = {"ID": self.id, "Flags": 0}
        if self.data is not None:
            out["Data"] = self.data
        return msgspec.json.encode(out)
