"""The nft rules of a host: outbound source NAT, and no way into containers from outside. Only our own tables.

Owns the table's text. A drop in somebody else's forward chain cannot be undone from here: nftables lets any
drop win.
"""

from __future__ import annotations

import subprocess

import msgspec

PORT_PREFIX = "ov"  # host-side veths: this and eight hexadecimal digits
# Translated source ports stay clear of published ones (30000-32767 are the swarm's own choice): an answer to a
# published UDP port would be taken for a new client.
OUTBOUND_PORTS = "32768-60999"


class NftError(RuntimeError):
    """nft is missing or refused the rules."""


class HostDropsForwarding(msgspec.Struct, frozen=True):
    """A foreign chain on the forward hook whose policy is drop: it may stop outbound traffic of
    containers."""

    family: str
    table: str
    chain: str


def run_nft(script: str) -> None:
    """Apply a script in the calling thread's namespace, all or nothing. Raises NftError."""
    try:
        run = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, timeout=30)
    except FileNotFoundError as e:
        raise NftError("nft not found: install nftables; outbound NAT and the containers' DNS need it") from e
    if run.returncode:
        raise NftError(f"nft refused: {run.stderr.strip()}")


def table_name(instance: str) -> str:
    return f"overlace_{instance}"


def host_table(instance: str) -> str:
    """The script that makes the host's table as it should be."""
    name = table_name(instance)
    return f"""
add table ip {name}
add chain ip {name} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {name} forward {{ type filter hook forward priority filter; policy accept; }}
flush chain ip {name} postrouting
flush chain ip {name} forward
add rule ip {name} postrouting iifname "{PORT_PREFIX}*" oifname != "{PORT_PREFIX}*" \
  meta l4proto {{ tcp, udp }} masquerade to :{OUTBOUND_PORTS}
add rule ip {name} postrouting iifname "{PORT_PREFIX}*" oifname != "{PORT_PREFIX}*" masquerade
add rule ip {name} forward oifname "{PORT_PREFIX}*" ct state established,related accept
add rule ip {name} forward oifname "{PORT_PREFIX}*" drop
"""


def remove_table(name: str) -> str:
    """A script that removes a table whether or not it is there."""
    return f"add table ip {name}\ndelete table ip {name}\n"


def foreign_forward_drops() -> list[HostDropsForwarding]:
    """Chains of others on the forward hook with policy drop, in the calling thread's namespace."""
    try:
        run = subprocess.run(["nft", "-j", "list", "chains"], capture_output=True, timeout=30)
        listing = msgspec.json.decode(run.stdout) if run.returncode == 0 and run.stdout else {}
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    chains = [item["chain"] for item in listing.get("nftables", []) if "chain" in item]
    return [
        HostDropsForwarding(c["family"], c["table"], c["name"])
        for c in chains
        if c.get("hook") == "forward" and c.get("policy") == "drop"
    ]
