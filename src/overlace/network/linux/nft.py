"""The nft rules of a host: outbound source NAT, how much of it one container may use, and no way into containers from
outside. Only our own tables.

Owns the table's text. A drop in somebody else's forward chain cannot be undone from here: nftables lets any
drop win.
"""

from __future__ import annotations

import subprocess

import msgspec

PORT_PREFIX = "ov"  # host-side veths: this and eight hexadecimal digits
ACCESS_PREFIX = (
    "oh"  # the same, of veths through which the host's own processes reach a network (host_access.py)
)
# Translated source ports stay clear of published ones (30000-32767 are the swarm's own choice): an answer to a
# published UDP port would be taken for a new client.
OUTBOUND_PORTS = "32768-60999"
FAMILIES = ("ip", "ip6")


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
    """The script that makes the host's table of each family as it should be."""
    return "".join(_family_table(family, table_name(instance)) for family in FAMILIES)


def _family_table(family: str, name: str) -> str:
    return f"""
add table {family} {name}
add chain {family} {name} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain {family} {name} forward {{ type filter hook forward priority filter; policy accept; }}
add map {family} {name} pools {{ type ifname : verdict; }}
flush chain {family} {name} postrouting
flush chain {family} {name} forward
flush map {family} {name} pools
add rule {family} {name} postrouting iifname "{PORT_PREFIX}*" oifname != "{PORT_PREFIX}*" \
  meta l4proto {{ tcp, udp }} masquerade to :{OUTBOUND_PORTS}
add rule {family} {name} postrouting iifname "{PORT_PREFIX}*" oifname != "{PORT_PREFIX}*" masquerade
add rule {family} {name} forward ct state new meta l4proto {{ tcp, udp }} iifname vmap @pools
add rule {family} {name} forward oifname "{PORT_PREFIX}*" ct state established,related accept
add rule {family} {name} forward oifname "{PORT_PREFIX}*" drop
add rule {family} {name} forward oifname "{ACCESS_PREFIX}*" drop
add rule {family} {name} forward iifname "{ACCESS_PREFIX}*" drop
"""


class PortPools:
    """How many of the host's ports for outbound NAT a container's interface has: so many connections at once of each
    family, TCP and UDP together; one more is dropped. Those from before the daemon's start are not counted."""

    def __init__(self, instance: str) -> None:
        self._table = table_name(instance)
        self._most: dict[str, int] = {}

    def clear(self) -> None:
        """The host's table has just been made."""
        self._most = {}

    def ensure(self, ifname: str, most: int) -> None:
        """`most` 0: as many as there are. Raises NftError."""
        before = self._most.get(ifname, 0)
        if before == most:
            return
        script: list[str] = []
        for table in (f"{family} {self._table}" for family in FAMILIES):
            if before:
                script.append(f"delete element {table} pools {{ {ifname} }}")
            if most:
                name = f"pool_{most}"
                script += [
                    f"add set {table} {name} {{ type ifname; size 65535; flags dynamic; }}",
                    f"add chain {table} {name}",
                    f"flush chain {table} {name}",
                    f"add rule {table} {name} add @{name} {{ iifname ct count over {most} }} drop",
                    f"add element {table} pools {{ {ifname} : jump {name} }}",
                ]
        run_nft("\n".join(script) + "\n")
        self._most[ifname] = most


def remove_table(name: str) -> str:
    """A script that removes a table of both families whether or not it is there."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family in FAMILIES)


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
