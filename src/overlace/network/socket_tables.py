"""The kernel's tables of sockets under /proc/net, as text: who listens where.

Owns their format (proc(5)). Must not read files, nor know namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from overlace.model.findings import Socket

_SCTP_LISTENING = "10"  # enum sctp_sock_state in include/net/sctp/constants.h


def read_address(text: str) -> str:
    """As /proc/net/tcp and tcp6 write it: words of 32 bits, each in the host's byte order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return str(ip_address(b"".join(words)))


def read_table(text: str, state: str) -> Iterator[tuple[Socket, int]]:
    """The sockets in `state` of a table like /proc/net/tcp, and their inodes."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == state:
            address, _, port = words[1].partition(":")
            waiting = int(words[4].partition(":")[2], 16) if state == "0A" else 0
            yield Socket(address=read_address(address), port=int(port, 16), waiting=waiting), int(words[9])


def read_sctp(text: str) -> Iterator[tuple[Socket, int]]:
    """The same of /proc/net/sctp/eps: ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 8 and words[3] == _SCTP_LISTENING:
            for address in words[8:]:
                yield Socket(address=str(ip_address(address)), port=int(words[5])), int(words[7])
