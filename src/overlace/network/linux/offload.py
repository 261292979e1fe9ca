"""Checksums a network card should have computed: taking that work from it (ethtool(8), <linux/ethtool.h>).

Owns the ioctl. Must not know why it is done.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GTXCSUM, _STXCSUM = 0x16, 0x17  # ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM


def _ethtool(ifname: str, command: int, value: int = 0) -> int:
    """One command of struct ethtool_value in the calling thread's namespace."""
    request = array.array("B", struct.pack("II", command, value))
    address, _ = request.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCETHTOOL, struct.pack("16sQ16x", ifname.encode(), address))
    return int(struct.unpack("II", request.tobytes())[1])


def computes_tx_checksum(ifname: str) -> bool:
    """Whether the device fills in checksums of what it sends."""
    try:
        return bool(_ethtool(ifname, _GTXCSUM))
    except OSError:
        return False


def disable_tx_checksum(ifname: str) -> bool:
    """Have the kernel compute them (and with them give up TSO, which needs the card's); False: the device refuses."""
    try:
        _ethtool(ifname, _STXCSUM, 0)
    except OSError:
        return False
    return not computes_tx_checksum(ifname)
