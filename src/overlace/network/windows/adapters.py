"""The network adapters of a Windows host: names, IPv4 addresses, MTU, DNS servers; by GetAdaptersAddresses.

Owns that one call. Must not change anything. Source: iptypes.h, iphlpapi.h; structures as 64-bit Windows lays them out.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_char_p, c_int32, c_uint8, c_uint32, c_void_p, c_wchar_p
from typing import Any

import msgspec

from overlace.model.errors import Unimplemented

_SKIP = 0x2 | 0x4  # GAA_FLAG_SKIP_ANYCAST, GAA_FLAG_SKIP_MULTICAST
_OVERFLOW, _NO_DATA = 111, 232
_UP = 1  # IfOperStatusUp
_LOOPBACK = 24  # IF_TYPE_SOFTWARE_LOOPBACK


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """One that is up. `name` as people see it; `mtu` in bytes of an IP packet."""

    name: str
    index: int
    addresses: tuple[str, ...]
    mtu: int
    dns: tuple[str, ...]
    suffix: str = ""  # of its connection, a search domain
    loopback: bool = False


class _Address(Structure):  # IP_ADAPTER_UNICAST_ADDRESS, IP_ADAPTER_DNS_SERVER_ADDRESS: their common head
    pass


_Address._fields_ = [
    ("length", c_uint32),
    ("flags", c_uint32),
    ("next", POINTER(_Address)),
    ("sockaddr", c_void_p),
    ("sockaddr_length", c_int32),
]


class _Adapter(Structure):  # IP_ADAPTER_ADDRESSES, as far as it is read
    pass


_Adapter._fields_ = [
    ("length", c_uint32),
    ("index", c_uint32),
    ("next", POINTER(_Adapter)),
    ("guid", c_char_p),
    ("unicast", POINTER(_Address)),
    ("anycast", c_void_p),
    ("multicast", c_void_p),
    ("dns", POINTER(_Address)),
    ("suffix", c_wchar_p),
    ("description", c_wchar_p),
    ("name", c_wchar_p),
    ("physical", c_uint8 * 8),
    ("physical_length", c_uint32),
    ("flags", c_uint32),
    ("mtu", c_uint32),
    ("type", c_uint32),
    ("status", c_uint32),
]


def adapters() -> list[Adapter]:
    """Every adapter that is up, in Windows' order. Raises OSError, Unimplemented where this is not Windows."""
    if sys.platform != "win32":
        raise Unimplemented("adapters are Windows': this host is not")
    call = ctypes.WinDLL("iphlpapi.dll").GetAdaptersAddresses
    call.argtypes = [c_uint32, c_uint32, c_void_p, c_void_p, POINTER(c_uint32)]
    size = c_uint32(16 << 10)
    while True:
        buffer = ctypes.create_string_buffer(size.value)
        code = call(int(socket.AF_INET), _SKIP, None, buffer, ctypes.byref(size))
        if code == _NO_DATA:
            return []
        if code == 0:
            return list(_read(ctypes.cast(buffer, POINTER(_Adapter))))
        if code != _OVERFLOW:
            raise OSError(0, f"GetAdaptersAddresses failed with {code}")


def _read(one: Any) -> Iterator[Adapter]:
    while one:
        a = one.contents
        if a.status == _UP:
            yield Adapter(
                name=a.name or "",
                index=a.index,
                addresses=tuple(_addresses(a.unicast)),
                mtu=min(a.mtu, 65535),  # loopback has none: all bits set
                dns=tuple(_addresses(a.dns)),
                suffix=a.suffix or "",
                loopback=a.type == _LOOPBACK,
            )
        one = a.next


def _addresses(one: Any) -> Iterator[str]:
    while one:
        a = one.contents
        if a.sockaddr and a.sockaddr_length >= 8:
            data = ctypes.string_at(a.sockaddr, 8)  # sockaddr_in: family, port, address
            if int.from_bytes(data[:2], sys.byteorder) == int(socket.AF_INET):
                yield socket.inet_ntoa(data[4:8])
        one = a.next


def nameservers(found: list[Adapter]) -> list[str]:
    """Whom the host itself asks, each once."""
    return list(dict.fromkeys(server for a in found for server in a.dns))


def search_domains(found: list[Adapter]) -> list[str]:
    """The adapters' own DNS suffixes, each once."""
    return list(dict.fromkeys(a.suffix for a in found if a.suffix))
