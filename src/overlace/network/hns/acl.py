"""ACL policies: the lists in their texts, read once.

Owns the reading (pure) and what is refused of it. Must not know state nor VFP.
Source: Microsoft's HCN schema (AclPolicySetting); 256 is HNS's word for any protocol; lower priorities come first,
and an endpoint with any ACL of type Switch refuses what none allows (Microsoft/Windows-Containers#616).
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.errors import Code, HcnError

ANY_PROTOCOL = 256
TCP, UDP = 6, 17
ANY_PORT = (0, 65535)
ANYWHERE = "0.0.0.0/0"
MAX_RULES = 512  # of one direction of one endpoint, lists written out
MIN_PRIORITY, MAX_PRIORITY = 1, 65500  # 65500 is the last that public clients found to work


class Acl(msgspec.Struct, frozen=True):
    """One policy; an empty list means any. Ports are ranges, both ends included."""

    priority: int
    direction: str  # In | Out
    allow: bool
    protocols: tuple[int, ...] = ()
    local: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    local_ports: tuple[tuple[int, int], ...] = ()
    remote_ports: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Rules with one value each that say the same."""
        out = 1
        for part in (self.protocols, self.local, self.remote, self.local_ports, self.remote_ports):
            out *= max(len(part), 1)
        return out


def _items(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _bad(field: str, text: str, remedy: str) -> HcnError:
    return HcnError(Code.BAD_PARAMETER, f"ACL.{field} {text!r}: {remedy}")


def _protocols(text: str) -> tuple[int, ...]:
    out = []
    for part in _items(text):
        if not part.isdigit() or not (int(part) < 252 or int(part) == ANY_PROTOCOL):
            raise _bad("Protocols", part, "write IANA numbers, 6 for TCP, 17 for UDP, 256 for any")
        out.append(int(part))
    return () if ANY_PROTOCOL in out else tuple(dict.fromkeys(out))


def _addresses(text: str, field: str) -> tuple[str, ...]:
    out = []
    for part in _items(text):
        try:
            out.append(str(ipaddress.IPv4Network(part, strict=False)))
        except ValueError:
            raise _bad(field, part, "write IPv4 addresses or prefixes such as 10.0.1.0/24") from None
    return tuple(dict.fromkeys(out))


def _ports(text: str, field: str) -> tuple[tuple[int, int], ...]:
    out = []
    for part in _items(text):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not (low.isdigit() and high.isdigit() and 0 < int(low) <= int(high) < 65536):
            raise _bad(field, part, "write ports or ranges from 1 to 65535, such as 80 or 8000-8010")
        out.append((int(low), int(high)))
    return tuple(dict.fromkeys(out))


@lru_cache(maxsize=16384)
def parse_acl(s: p.AclSettings) -> Acl:
    """Raises HcnError naming the field."""
    if s.rule_type != "Switch":
        raise _bad(
            "RuleType", s.rule_type, "only Switch rules (VFP) are enforced here, not the host firewall's"
        )
    if not MIN_PRIORITY <= s.priority <= MAX_PRIORITY:
        raise _bad("Priority", str(s.priority), f"use {MIN_PRIORITY} to {MAX_PRIORITY}; lower comes first")
    acl = Acl(
        priority=s.priority,
        direction=s.direction,
        allow=s.action == "Allow",
        protocols=_protocols(s.protocols),
        local=_addresses(s.local_addresses, "LocalAddresses"),
        remote=_addresses(s.remote_addresses, "RemoteAddresses"),
        local_ports=_ports(s.local_ports, "LocalPorts"),
        remote_ports=_ports(s.remote_ports, "RemotePorts"),
    )
    if (acl.local_ports or acl.remote_ports) and not (acl.protocols and {*acl.protocols} <= {TCP, UDP}):
        raise _bad("Protocols", s.protocols, "ports belong to TCP and UDP: write 6, 17 or 6,17")
    return acl


def check_acls(policies: tuple[object, ...]) -> None:
    """Raises HcnError for a list that cannot be read, and when they are too many."""
    size = {"In": 0, "Out": 0}
    for policy in policies:
        if isinstance(policy, p.Acl):
            acl = parse_acl(policy.settings)
            size[acl.direction] += acl.size
    for direction, n in size.items():
        if n > MAX_RULES:
            raise HcnError(
                Code.BAD_PARAMETER,
                f"ACL: {n} rules for direction {direction}, lists written out; {MAX_RULES} are possible: name "
                "prefixes and port ranges instead of single addresses and ports",
            )


def acls_of(policies: tuple[object, ...]) -> list[Acl]:
    """In order of evaluation: by priority, then as written."""
    found = [parse_acl(x.settings) for x in policies if isinstance(x, p.Acl)]
    return sorted(found, key=lambda a: a.priority)
