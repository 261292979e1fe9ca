"""IP protocols by number and by the word people write.

Owns both (IANA, Assigned Internet Protocol Numbers). Must not know what a part of the program does with one.
"""

from __future__ import annotations

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
WITH_PORTS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
PROTOCOLS = {"icmp": ICMP, **WITH_PORTS}  # "icmp" of either address family, where somebody writes it
WORDS = {number: word for word, number in PROTOCOLS.items()} | {ICMPV6: "icmpv6"}
