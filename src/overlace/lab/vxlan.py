"""Reading captured VXLAN packets: who sent what to whom, outside and inside.

Pure: bytes in, structs out. Formats: pcap file (draft-ietf-opsawg-pcap), VXLAN (RFC 7348 section 5), and
the headers of Ethernet, IPv4, IPv6, UDP and TCP.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

import msgspec

from overlace.model.objects import VXLAN_PORT

_ETHERNET = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_ARP = 0x0806
_TCP, _UDP, _ICMP = 6, 17, 1
_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x08, "PSH"), (0x01, "FIN"), (0x04, "RST"))


class Packet(msgspec.Struct, frozen=True):
    """One VXLAN packet. `time` in seconds since the epoch; addresses as text; ports 0 where the protocol
    has none.
    """

    time: float
    outer_source: str
    outer_target: str
    vni: int
    inner_source: str
    inner_target: str
    protocol: str
    source_port: int = 0
    target_port: int = 0
    flags: str = ""
    payload: bytes = b""

    @property
    def what(self) -> str:
        """The packet in a few words: the request or status line it begins, else its flags."""
        first = self.payload.split(b"\r\n", 1)[0]
        if first.startswith((b"GET ", b"HTTP/1.")):
            return first.decode(errors="replace")
        if self.payload:
            return f"{len(self.payload)} bytes"
        return self.flags or self.protocol


def read_pcap(data: bytes) -> Iterator[tuple[float, bytes]]:
    """Yield (seconds since the epoch, frame) of a pcap file; a record cut short at the end is left out.

    Raises ValueError when `data` is no pcap file of Ethernet frames.
    """
    if len(data) < 24:
        raise ValueError("not a pcap file: too short")
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(data[:4])
    if order is None:
        raise ValueError("not a pcap file with microseconds")
    if struct.unpack_from(order + "I", data, 20)[0] != 1:
        raise ValueError("not a capture of Ethernet frames")
    at = 24
    while at + 16 <= len(data):
        seconds, micros, kept, _ = struct.unpack_from(order + "IIII", data, at)
        at += 16
        if at + kept > len(data):
            return
        yield seconds + micros / 1e6, data[at : at + kept]
        at += kept


def _ipv4(packet: bytes) -> tuple[int, str, str, bytes] | None:
    """(protocol, source, target, payload) of an IPv4 packet, trailing padding cut off."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    length = struct.unpack_from("!H", packet, 2)[0]
    source, target = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
    return packet[9], source, target, packet[(packet[0] & 15) * 4 : length]


def _ipv6(packet: bytes) -> tuple[int, str, str, bytes] | None:
    """The same of an IPv6 packet without extension headers."""
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    length = struct.unpack_from("!H", packet, 4)[0]
    source, target = (str(ipaddress.IPv6Address(packet[at : at + 16])) for at in (8, 24))
    return packet[6], source, target, packet[40 : 40 + length]


def parse(time: float, frame: bytes, port: int = VXLAN_PORT) -> Packet | None:
    """The VXLAN packet in an Ethernet frame, None when it is something else or cut short."""
    read = _READ.get(struct.unpack_from("!H", frame, 12)[0]) if len(frame) >= _ETHERNET else None
    outer = read(frame[_ETHERNET:]) if read is not None else None
    if outer is None or outer[0] != _UDP or len(outer[3]) < 16 + _ETHERNET:
        return None
    if struct.unpack_from("!H", outer[3], 2)[0] != port or not outer[3][8] & 0x08:
        return None
    vni = int.from_bytes(outer[3][12:15], "big")
    inner_frame = outer[3][16:]
    kind = struct.unpack_from("!H", inner_frame, 12)[0]
    inner = _READ[kind](inner_frame[_ETHERNET:]) if kind in _READ else None
    if inner is None:
        macs = [inner_frame[at : at + 6].hex(":") for at in (6, 0)]
        name = "ARP" if kind == _ARP else f"ethertype {kind:#06x}"
        return Packet(time, outer[1], outer[2], vni, macs[0], macs[1], name)
    protocol, source, target, rest = inner
    name = {_TCP: "TCP", _UDP: "UDP", _ICMP: "ICMP"}.get(protocol, f"protocol {protocol}")
    if protocol == _TCP and len(rest) >= 20:
        from_port, to_port = struct.unpack_from("!HH", rest)
        flags = " ".join(word for bit, word in _FLAGS if rest[13] & bit)
        data = rest[(rest[12] >> 4) * 4 :]
        return Packet(time, outer[1], outer[2], vni, source, target, name, from_port, to_port, flags, data)
    if protocol == _UDP and len(rest) >= 8:
        from_port, to_port = struct.unpack_from("!HH", rest)
        return Packet(time, outer[1], outer[2], vni, source, target, name, from_port, to_port, "", rest[8:])
    return Packet(time, outer[1], outer[2], vni, source, target, name)


_READ = {_IPV4: _ipv4, _IPV6: _ipv6}


def read_packets(data: bytes) -> list[Packet]:
    """All VXLAN packets of a pcap file, in order."""
    return [packet for time, frame in read_pcap(data) if (packet := parse(time, frame)) is not None]
