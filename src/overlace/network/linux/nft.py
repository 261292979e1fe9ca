"""The nft rules of a host: outbound source NAT, how much of it one container may use, and no way into containers from
outside. Only our own tables.

Owns the table's text. A drop in somebody else's forward chain cannot be undone from here: nftables lets any
drop win.
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

PORT_PREFIX = "ov"  # host-side veths: this and eight hexadecimal digits
ACCESS_PREFIX = (
    "oh"  # the same, of veths through which the host's own processes reach a network (host_access.py)
)
# The rules know both kinds by the interface's group (`ip link show group 28534`): a pattern for their names would be one
# for a host's ovirtmgmt or ovs-system, too.
PORT_GROUP, ACCESS_GROUP = 0x6F76, 0x6F68
# Translated source ports stay clear of published ones (30000-32767 are the swarm's own choice): an answer to a
# published UDP port would be taken for a new client.
OUTBOUND_PORTS = "32768-60999"
FAMILIES = ("ip", "ip6")


_SECONDS = 30  # a host's nft waits for another's transaction


class NftError(RuntimeError):
    """nft is missing, refused the rules or did not end."""


class HostDropsForwarding(msgspec.Struct, frozen=True):
    """A foreign chain on the forward hook whose policy is drop: it may stop outbound traffic of
    containers."""

    family: str
    table: str
    chain: str


def run_nft(script: str) -> None:
    """Apply a script in the calling thread's namespace, all or nothing. Raises NftError."""
    try:
        run = subprocess.run(
            ["nft", "-f", "-"], input=script, capture_output=True, text=True, timeout=_SECONDS
        )
    except FileNotFoundError as e:
        raise NftError("nft not found: install nftables; outbound NAT and the containers' DNS need it") from e
    except subprocess.TimeoutExpired as e:
        raise NftError(f"nft did not end within {_SECONDS} seconds: it is tried again") from e
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
add rule {family} {name} postrouting iifgroup {PORT_GROUP} oifgroup != {PORT_GROUP} \
  meta l4proto {{ tcp, udp }} masquerade to :{OUTBOUND_PORTS}
add rule {family} {name} postrouting iifgroup {PORT_GROUP} oifgroup != {PORT_GROUP} masquerade
add rule {family} {name} forward ct state new meta l4proto {{ tcp, udp }} iifname vmap @pools
add rule {family} {name} forward oifgroup {PORT_GROUP} ct state established,related accept
add rule {family} {name} forward oifgroup {PORT_GROUP} drop
add rule {family} {name} forward oifgroup {ACCESS_GROUP} drop
add rule {family} {name} forward iifgroup {ACCESS_GROUP} drop
"""


class PortPools:
    """How many of the host's ports for outbound NAT a container's interface has: so many connections at once of each
    family, TCP and UDP together; one more is dropped. Those from before the daemon's start are not counted."""

    def __init__(self, instance: str) -> None:
        self._table = table_name(instance)
        self._most: dict[str, int] = {}

    def renew(self) -> None:
        """The host's table has been made again: what each has goes into it anew. Raises NftError."""
        before, self._most = self._most, {}
        for ifname, most in before.items():
            self.ensure(ifname, most)

    def known(self) -> dict[str, int]:
        """Connections by interface, of those that have a limit."""
        return {ifname: most for ifname, most in self._most.items() if most}

    def ensure(self, ifname: str, most: int) -> None:
        """`most` 0: as many as there are. Nothing of an earlier limit stays. Raises NftError."""
        before = self._most.get(ifname, 0)
        if before == most:
            return
        others = [n for name, n in self._most.items() if name != ifname]
        script: list[str] = []
        for table in (f"{family} {self._table}" for family in FAMILIES):
            if before:
                name = f"pool_{before}"
                script += [
                    f"delete element {table} pools {{ {ifname} }}",
                    # packets enter it: whether it is there is not known here, and deleting what is not is refused
                    f"add element {table} {name} {{ {ifname} ct count over {before} }}",
                    f"delete element {table} {name} {{ {ifname} }}",
                ]
                if before not in others:
                    script += [f"delete chain {table} {name}", f"delete set {table} {name}"]
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
        self._most.pop(ifname, None)
        if most:
            self._most[ifname] = most

    def keep(self, ifnames: set[str]) -> None:
        """Of these alone: the others' endpoints are gone. Raises NftError."""
        for ifname in sorted(self._most.keys() - ifnames):
            self.ensure(ifname, 0)


_NETFILTER = 12  # linux/netlink.h
_SUBSYSTEM, _NEW_GENERATION, _GET_GENERATION = 10 << 8, 15, 16  # linux/netfilter/nfnetlink.h, nf_tables.h


def generation() -> int:
    """A number that is another one after every change of the namespace's rules, whoever made it: one question to the
    kernel. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as s:
        s.settimeout(5)
        s.send(struct.pack("=IHHIIBBH", 20, _SUBSYSTEM | _GET_GENERATION, 1, 1, 0, socket.AF_UNSPEC, 0, 0))
        data = s.recv(4096)
    (kind,) = struct.unpack_from("H", data, 4)
    if kind != _SUBSYSTEM | _NEW_GENERATION:
        raise OSError(errno.EPROTO, "the kernel does not say which generation its nft rules are")
    return int(struct.unpack_from(">I", data, 24)[0])  # NFTA_GEN_ID, the first attribute


def lost(instance: str, pools: Mapping[str, int]) -> list[str]:
    """What of the host's tables is missing in the calling thread's namespace, a sentence each."""
    found: list[str] = []
    for family in FAMILIES:
        name = table_name(instance)
        try:
            run = subprocess.run(
                ["nft", "-j", "list", "table", family, name], capture_output=True, timeout=30
            )
            listing = msgspec.json.decode(run.stdout) if run.returncode == 0 and run.stdout else {}
        except (FileNotFoundError, subprocess.TimeoutExpired, msgspec.DecodeError) as e:
            raise NftError(f"nft cannot list table {family} {name}: {e}") from e
        found += explain_table(listing, family, name, pools)
    return found


def explain_table(listing: Any, family: str, name: str, pools: Mapping[str, int]) -> Iterator[str]:
    """`listing`: of `nft -j list table`, empty when there is none. Rules are counted, not read."""
    items = listing.get("nftables", [])
    if not any("table" in item for item in items):
        yield f"the nft table {family} {name} is gone: no outbound NAT, and nothing keeps others out of containers"
        return
    rules: dict[str, int] = {}
    for item in items:
        if "rule" in item:
            chain = item["rule"]["chain"]
            rules[chain] = rules.get(chain, 0) + 1
    hooked = {item["chain"]["name"] for item in items if "chain" in item and "hook" in item["chain"]}
    for chain, text in (("postrouting", "outbound NAT"), ("forward", "no way into containers from outside")):
        wanted = _family_table(family, name).count(f"add rule {family} {name} {chain} ")
        if chain not in hooked or rules.get(chain, 0) < wanted:
            yield f"the nft chain {family} {name} {chain} has lost rules ({text})"
    elements: list[Any] = next(
        (i["map"].get("elem", []) for i in items if i.get("map", {}).get("name") == "pools"), []
    )
    have = {element[0] for element in elements if isinstance(element, list)}
    if missing := sorted(pools.keys() - have):
        yield f"the nft table {family} {name} has lost how many ports {', '.join(missing)} may use"


def remove_table(name: str) -> str:
    """A script that removes a table of both families whether or not it is there."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family in FAMILIES)


def foreign_forward_drops() -> list[HostDropsForwarding]:
    """Chains of others on the forward hook with policy drop, in the calling thread's namespace."""
    try:
        run = subprocess.run(["nft", "-j", "list", "chains"], capture_output=True, timeout=_SECONDS)
        listing = msgspec.json.decode(run.stdout) if run.returncode == 0 and run.stdout else {}
    except (FileNotFoundError, subprocess.TimeoutExpired, msgspec.DecodeError):
        return []
    chains = [item["chain"] for item in listing.get("nftables", []) if "chain" in item]
    return [
        HostDropsForwarding(c["family"], c["table"], c["name"])
        for c in chains
        if c.get("hook") == "forward" and c.get("policy") == "drop"
    ]
