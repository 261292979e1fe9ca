"""Which backend a client with session affinity gets that has none yet: the definition the data path must agree with.

Owns the choice (pure): rendezvous hashing, the backend with the highest weight for this client. Every host makes the same
one from the same list, in any order; a backend that goes gives its clients to all others alike, and one that comes takes
only those that prefer it. bpf/affinity.h is the same in C; no daemon runs this one, tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from overlace.network.vfp.tables import Backend

_WORD = 0xFFFFFFFF


def _mixed(h: int) -> int:
    """The finalizer of MurmurHash3 (32 bit)."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & _WORD
    h ^= h >> 13
    h = h * 0xC2B2AE35 & _WORD
    return h ^ h >> 16


def _hash(address: str) -> int:
    octets = ip_address(address).packed
    h = 0
    for at in range(0, len(octets), 4):
        h = _mixed(h ^ int.from_bytes(octets[at : at + 4], "big"))
    return h


def preferred(backends: Sequence[Backend], client: str) -> Backend:
    """The backend of the client at this address. Raises ValueError when there is none."""
    own = _hash(client)
    return max(backends, key=lambda b: _mixed(own + (_hash(b.address) ^ b.port) & _WORD))
