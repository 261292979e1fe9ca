"""Which ports of a Windows host have a socket: listening TCP, bound UDP; by GetExtendedTcpTable and GetExtendedUdpTable.

Owns reading those tables. Must not change anything. Source: iphlpapi.h, tcpmib.h, udpmib.h.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_int32, c_uint32, c_void_p

from overlace.model.errors import Unimplemented

_AF_INET, _AF_INET6 = 2, 23
_TCP_LISTENERS, _UDP_SOCKETS = 3, 1  # TCP_TABLE_OWNER_PID_LISTENER, UDP_TABLE_OWNER_PID
_OVERFLOW = 122
# call, protocol, class, then by family: bytes of a row and where its local port is
_TABLES = (
    ("GetExtendedTcpTable", 6, _TCP_LISTENERS, {_AF_INET: (24, 8), _AF_INET6: (56, 20)}),
    ("GetExtendedUdpTable", 17, _UDP_SOCKETS, {_AF_INET: (12, 4), _AF_INET6: (28, 20)}),
)


def listening() -> set[tuple[str, int, int]]:
    """("", protocol number, port): at whatever address. Raises OSError, Unimplemented where this is not Windows."""
    if sys.platform != "win32":
        raise Unimplemented("these tables are Windows': this host is not")
    found: set[tuple[str, int, int]] = set()
    library = ctypes.WinDLL("iphlpapi.dll")
    for name, protocol, kind, families in _TABLES:
        call = getattr(library, name)
        call.argtypes = [c_void_p, POINTER(c_uint32), c_int32, c_uint32, c_uint32, c_uint32]
        for family, (row, offset) in families.items():
            size, code, table = c_uint32(4096), _OVERFLOW, b""
            while code == _OVERFLOW:
                buffer = ctypes.create_string_buffer(size.value)
                code = call(buffer, ctypes.byref(size), 0, family, kind, 0)
                table = buffer.raw
            if code and family == _AF_INET:
                raise OSError(0, f"{name} failed with {code}")
            if not code:  # no IPv6 is no ports there
                found |= {("", protocol, port) for port in ports_of(table, row, offset)}
    return found


def ports_of(table: bytes, row: int, offset: int) -> Iterator[int]:
    """Local ports of a table of rows of `row` bytes after a number of them; a port is in network order in its member."""
    for i in range(int.from_bytes(table[:4], "little")):
        at = 4 + i * row + offset
        yield int.from_bytes(table[at : at + 2], "big")
