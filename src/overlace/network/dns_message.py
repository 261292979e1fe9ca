"""DNS messages: a question read, an answer written. Pure, but for the order of an answer's records, which is random.

Must not know who asks nor what a name means. Source: RFC 1035, 2181, 2308, 6891 (EDNS).
"""

from __future__ import annotations

import random
import socket
import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import msgspec

from overlace.model.family import is_six
from overlace.network.names import Answer

TTL = 0  # seconds: a change of tasks is seen by the next query
UDP_DEFAULT, UDP_MAX = 512, 4096  # octets of an answer without / with EDNS at most


class Wire(msgspec.Struct, frozen=True):
    """An answer in pieces: header (without id) and question, records, and the OPT record when EDNS was
    used."""

    question: bytes
    records: tuple[bytes, ...]
    tail: bytes
    rcode: int
    limit: int  # octets over UDP
    recursion: bool

    def encode(self, ident: bytes, *, tcp: bool) -> bytes:
        """The message, records in random order, as many as fit with TC set when not all do."""
        records = list(self.records)
        if len(records) > 1:
            random.shuffle(records)
        limit = 65535 if tcp else self.limit
        fixed = 12 + len(self.question) + len(self.tail)
        truncated = False
        if fixed + sum(map(len, records)) > limit:
            truncated = True
            kept, size = 0, fixed
            for r in records:
                size += len(r)
                if size > limit:
                    break
                kept += 1
            records = records[:kept]
        flags = 0x8080 | (0x0100 if self.recursion else 0) | (0x0200 if truncated else 0) | self.rcode
        header = struct.pack(">HHHHH", flags, 1, len(records), 0, 1 if self.tail else 0)
        return b"".join((ident, header, self.question, *records, self.tail))


class Query(msgspec.Struct, frozen=True):
    """One question, checked."""

    name: str  # no final dot
    qtype: str
    question: bytes  # as on the wire
    edns: bool
    limit: int
    recursion: bool
    in_class: bool
    opcode: int


def parse_query(data: bytes) -> Query | None:
    """None for what is no well-formed query with one question: it is ignored."""
    if len(data) < 17 or data[2] & 0x80 or data[4:6] != b"\x00\x01":
        return None
    try:
        m = dns.message.from_wire(data, one_rr_per_rrset=True)
    except dns.exception.DNSException:
        return None
    except Exception:  # dnspython's own slips on hostile input must not cost more than this query
        return None
    if len(m.question) != 1:
        return None
    q = m.question[0]
    end = 12
    while data[end]:
        if data[end] & 0xC0:
            return None  # a compressed name in the question
        end += data[end] + 1
    return Query(
        name=q.name.to_text(omit_final_dot=True),
        qtype=dns.rdatatype.to_text(q.rdtype),
        question=data[12 : end + 5],
        edns=m.edns >= 0,
        limit=min(max(m.payload, UDP_DEFAULT), UDP_MAX) if m.edns >= 0 else UDP_DEFAULT,
        recursion=bool(m.flags & dns.flags.RD),
        in_class=q.rdclass == dns.rdataclass.IN,
        opcode=int(m.opcode()),
    )


def _record(rdtype: int, rdata: bytes) -> bytes:
    # the owner is a pointer to the question's name, which always starts at octet 12
    return struct.pack(">HHHIH", 0xC00C, rdtype, 1, TTL, len(rdata)) + rdata


def build(query: Query, answer: Answer, rcode: int = 0) -> Wire:
    """The answer to a query; names that DNS cannot carry are left out."""
    records = [
        _record(28, socket.inet_pton(socket.AF_INET6, a)) if is_six(a) else _record(1, socket.inet_aton(a))
        for a in answer.addresses
    ]
    for name in answer.names:
        try:
            records.append(_record(12, dns.name.from_text(name).to_wire() or b""))
        except dns.exception.DNSException:
            continue  # a name DNS cannot carry has no PTR
    tail = struct.pack(">BHHIH", 0, 41, 1232, 0, 0) if query.edns else b""
    return Wire(query.question, tuple(records), tail, rcode, query.limit, query.recursion)
