"""ACL and TierAcl policies: the lists in their texts, read once; address sets by name.

Owns the reading (pure), in which order they decide, and what is refused of them. Must not know state nor VFP.
Source: Microsoft's HCN schema (AclPolicySetting, TierAclPolicySetting, SetPolicySetting); 256 is HNS's word for any
protocol; lower priorities come first, and an endpoint with any ACL of type Switch refuses what none allows
(Microsoft/Windows-Containers#616). Not documented, chosen here: tiers decide before the endpoint's plain ACLs, in
their Order; a tier's Allow and Block are final, Pass leaves the rest of that tier out; an endpoint with a tier refuses
what nothing allows. Rules of type Host (the Windows firewall's) block what they block and decide nothing else: whom they
allow, the host's own programs among them, the others still judge. (Calico's Felix gives each endpoint a Host Allow of
everything beside its default Block, and lets the host in by a Switch rule of its own.)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from overlace.model.protocols import WITH_PORTS
from overlace.network.hns import policies as p
from overlace.network.hns.errors import Code, HcnError

ANY_PROTOCOL = 256
VXLAN = 252  # no protocol of IP but HNS's word for VXLAN: UDP to the VXLAN port
ANY_PORT = (0, 65535)
MAX_RULES = 512  # of one direction of one endpoint, protocols and ports written out
MAX_ADDRESSES = 4096  # of one list or set; public clients found Windows to end at about 4000
MAX_TIERS = 64  # of one endpoint and direction
MIN_PRIORITY, MAX_PRIORITY = 1, 65500  # 65500 is the last that public clients found to work
_SET_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9A-Za-z_-]*[A-Za-z_-][0-9A-Za-z_-]*")
Sets = Mapping[str, tuple[str, ...]]  # CIDRs by the set's id
Action = Literal["allow", "block", "pass"]


class Acl(msgspec.Struct, frozen=True):
    """One rule; an empty list means any. Ports are ranges, both ends included; addresses are CIDRs or ids of sets."""

    priority: int
    direction: str  # In | Out
    action: Action
    protocols: tuple[int, ...] = ()
    local: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    local_ports: tuple[tuple[int, int], ...] = ()
    remote_ports: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Rules with one protocol and one range of ports each that say the same."""
        out = 1
        for part in (self.protocols, self.local_ports, self.remote_ports):
            out *= max(len(part), 1)
        return out


class Tier(msgspec.Struct, frozen=True):
    """Rules of one direction in order of evaluation."""

    name: str
    direction: str
    rules: tuple[Acl, ...]


def _items(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _bad(field: str, text: str, remedy: str) -> HcnError:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    return HcnError(Code.BAD_PARAMETER, f"{field} {shown!r}: {remedy}")


def _number(text: str) -> int | None:
    """Of at most five ASCII digits, which protocols and ports have; None: it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _protocols(text: str, field: str) -> tuple[int, ...]:
    out = []
    for part in _items(text):
        number = _number(part)
        if number is None or not (number <= VXLAN or number == ANY_PROTOCOL):
            raise _bad(field, part, "write IANA numbers, 6 for TCP, 17 for UDP, 252 for VXLAN, 256 for any")
        out.append(number)
    return () if ANY_PROTOCOL in out else tuple(dict.fromkeys(out))


def _addresses(text: str, field: str, *, names: bool = True) -> tuple[str, ...]:
    out = []
    for part in _items(text):
        try:
            out.append(str(ipaddress.ip_network(part, strict=False)))
        except ValueError:
            if not (names and _SET_ID.fullmatch(part)):
                what = "addresses or prefixes such as 10.0.1.0/24"
                raise _bad(field, part, f"write {what}" + (" or ids of SetPolicy" if names else "")) from None
            out.append(part)
    if len(out) > MAX_ADDRESSES:
        raise _bad(field, f"{len(out)} items", f"{MAX_ADDRESSES} are possible: name prefixes or sets")
    return tuple(dict.fromkeys(out))


def _ports(text: str, field: str) -> tuple[tuple[int, int], ...]:
    out = []
    for part in _items(text):
        text_low, dash, text_high = part.partition("-")
        low = _number(text_low)
        high = _number(text_high) if dash else low
        if low is None or high is None or not 0 < low <= high < 65536:
            raise _bad(field, part, "write ports or ranges from 1 to 65535, such as 80 or 8000-8010")
        out.append((low, high))
    return tuple(dict.fromkeys(out))


def _parse(kind: str, s: p.AclSettings | p.TierAclRule, direction: str, action: Action) -> Acl:
    acl = Acl(
        priority=s.priority,
        direction=direction,
        action=action,
        protocols=_protocols(s.protocols, f"{kind}.Protocols"),
        local=_addresses(s.local_addresses, f"{kind}.LocalAddresses"),
        remote=_addresses(s.remote_addresses, f"{kind}.RemoteAddresses"),
        local_ports=_ports(s.local_ports, f"{kind}.LocalPorts"),
        remote_ports=_ports(s.remote_ports, f"{kind}.RemotePorts"),
    )
    if (acl.local_ports or acl.remote_ports) and not (
        acl.protocols and {*acl.protocols} <= {*WITH_PORTS.values()}
    ):
        raise _bad(
            f"{kind}.Protocols",
            s.protocols,
            "ports belong to TCP, UDP and SCTP: write 6, 17, 132 or some of them",
        )
    return acl


@lru_cache(maxsize=16384)
def parse_acl(s: p.AclSettings) -> Acl:
    """Raises HcnError naming the field."""
    if s.action == "Pass":
        raise _bad("ACL.Action", s.action, "write Allow or Block; Pass belongs to rules of a TierAcl")
    lowest = MIN_PRIORITY if s.rule_type == "Switch" else 0  # before 1803 host rules had no priority
    if not lowest <= s.priority <= MAX_PRIORITY:
        raise _bad("ACL.Priority", str(s.priority), f"use {lowest} to {MAX_PRIORITY}; lower comes first")
    if s.rule_type == "Host":
        return _parse("ACL", s, s.direction, "pass" if s.action == "Allow" else "block")
    return _parse("ACL", s, s.direction, "allow" if s.action == "Allow" else "block")


@lru_cache(maxsize=4096)
def parse_tier(s: p.TierAclSettings) -> Tier:
    """Raises HcnError naming the field."""
    if not 0 <= s.order < 1 << 16:
        raise _bad("TierAcl.Order", str(s.order), "use 0 to 65535; lower comes first")
    rules = []
    for i, rule in enumerate(s.tier_acl_rules):
        if not 0 <= rule.priority <= 65535:
            raise _bad(f"TierAclRules[{i}].Priority", str(rule.priority), "use 0 to 65535; lower comes first")
        action: Action = {"Allow": "allow", "Block": "block", "Pass": "pass"}[rule.tier_acl_rule_action]  # type: ignore[assignment]
        rules.append(_parse(f"TierAclRules[{i}]", rule, s.direction, action))
    return Tier(s.name, s.direction, tuple(sorted(rules, key=lambda r: r.priority)))


def read_sets(policies: Iterable[object]) -> dict[str, tuple[str, ...]]:
    """The address sets of a network's policies, nested ones resolved. Raises HcnError naming the field."""
    settings: dict[str, p.SetPolicySettings] = {}
    for policy in policies:
        if isinstance(policy, p.SetPolicy):
            s = policy.settings
            if not _SET_ID.fullmatch(s.id):
                raise _bad(
                    "SetPolicy.Id", s.id, "use letters, digits, dots, dashes, with one letter at least"
                )
            if s.id in settings:
                raise HcnError(Code.POLICY_ALREADY_EXISTS, f"SetPolicy.Id {s.id!r} is there twice: keep one")
            settings[s.id] = s
    out: dict[str, tuple[str, ...]] = {}
    for s in settings.values():
        if s.policy_type == "IPSET":
            out[s.id] = _addresses(s.values, f"SetPolicy {s.id}.Values", names=False)
    for s in settings.values():
        if s.policy_type != "NESTEDIPSET":
            continue
        found: dict[str, None] = {}
        for name in _items(s.values):
            inner = settings.get(name)
            if inner is None or inner.policy_type != "IPSET":
                raise _bad(f"SetPolicy {s.id}.Values", name, "name IPSETs of the same network")
            found |= dict.fromkeys(out[name])
        out[s.id] = tuple(found)
    return out


def judging(network: Iterable[object], endpoint: Iterable[object]) -> tuple[object, ...]:
    """All policies that judge an endpoint's connections or may: its own, and its network's NetworkACLs as if they were
    its own. No public source says how the two meet; here they are one list by priority."""
    return (*(p.Acl(x.settings) for x in network if isinstance(x, p.NetworkAcl)), *endpoint)


def set_names(policies: Iterable[object]) -> set[str]:
    """Ids of sets an endpoint's ACLs refer to."""
    rules = [parse_acl(x.settings) for x in policies if isinstance(x, p.Acl)]
    rules += [r for x in policies if isinstance(x, p.TierAcl) for r in parse_tier(x.settings).rules]
    return {a for r in rules for a in (*r.local, *r.remote) if not _is_cidr(a)}


def _is_cidr(text: str) -> bool:
    return "/" in text


def resolve(addresses: tuple[str, ...], sets: Sets) -> tuple[str, ...]:
    """Names of sets replaced by what they hold; empty ones hold nobody."""
    if not addresses:
        return ()
    out: dict[str, None] = {}
    for a in addresses:
        out |= dict.fromkeys((a,) if _is_cidr(a) else sets.get(a, ()))
    return tuple(out) or NOBODY


NOBODY = ("255.255.255.255/32",)  # no packet comes from or goes to it: the data path drops broadcasts before


def check_acls(policies: Sequence[object], sets: Sets) -> None:
    """Raises HcnError for a list that cannot be read, an unknown set, and when they are too many."""
    unknown = sorted(set_names(policies) - set(sets))
    if unknown:
        raise _bad(
            "ACL addresses",
            unknown[0],
            "no address, and the network has no SetPolicy of this Id: add it first",
        )
    for direction in ("In", "Out"):
        tiers = tiers_of(policies, direction)
        if len(tiers) > MAX_TIERS:
            raise HcnError(
                Code.BAD_PARAMETER,
                f"TierAcl: {len(tiers)} tiers for direction {direction}; {MAX_TIERS} are possible",
            )
        n = rules_written(policies, direction)
        if n > MAX_RULES:
            raise HcnError(
                Code.BAD_PARAMETER,
                f"ACL: {n} rules for direction {direction}, protocols and ports written out, and what they leave open; "
                f"{MAX_RULES} are possible: "
                "name port ranges instead of single ports, and put addresses with the same ports into one rule",
            )


def rules_written(policies: Sequence[object], direction: str) -> int:
    """Rules of the list a direction comes to, with what lets pass what no rule decides."""
    named = sum(rule.size for tier in tiers_of(policies, direction) for rule in tier.rules)
    return named if is_closed(policies) else named + 1


def tiers_of(policies: Sequence[object], direction: str) -> list[Tier]:
    """In order of evaluation: rules of type Host, TierAcls by Order, plain ACLs by priority. What no tier decides is
    blocked if `is_closed`, else allowed."""
    acls = [x.settings for x in policies if isinstance(x, p.Acl) and x.settings.direction == direction]
    out = []
    for kind, name in (("Host", "HOST"), ("Switch", "ACL")):
        found = sorted((parse_acl(s) for s in acls if s.rule_type == kind), key=lambda a: a.priority)
        if found:
            out.append(Tier(name, direction, tuple(found)))
    tiers = [x.settings for x in policies if isinstance(x, p.TierAcl) and x.settings.direction == direction]
    between = [parse_tier(s) for s in sorted(tiers, key=lambda s: (s.order, s.name))]
    at = 1 if out and out[0].name == "HOST" else 0
    return out[:at] + between + out[at:]


def is_filtered(policies: Iterable[object]) -> bool:
    """Whether anything judges the endpoint's connections."""
    return any(isinstance(x, (p.Acl, p.TierAcl)) for x in policies)


def is_closed(policies: Iterable[object]) -> bool:
    """Whether what no rule decides is blocked: with any ACL of type Switch, of either direction, or any tier."""
    return any(
        isinstance(x, p.TierAcl) or (isinstance(x, p.Acl) and x.settings.rule_type == "Switch")
        for x in policies
    )
