"""Which HNS version brought what: features a host's clients ask for by version, and refusals where it is older.

Owns the table and the gates. Must not know state. Source: hcsshim's hcnglobals.go.
"""

from __future__ import annotations

from collections.abc import Callable

from overlace.model.capabilities import AFFINITY, CLIENT_ADDRESS, DIRECT_RETURN, IPV6, OVERLAY
from overlace.network.hns import policies as p
from overlace.network.hns.acl import VXLAN, parse_acl, parse_tier
from overlace.network.hns.documents import (
    Document,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    LoadBalancerFlags,
)
from overlace.network.hns.errors import Code, HcnError

HnsVersion = tuple[int, int]
LATEST: HnsVersion = (15, 4)
_END = (1 << 31, 0)

# feature -> spans it exists in: first version, first version without
FEATURES: dict[str, tuple[tuple[HnsVersion, HnsVersion], ...]] = {
    "V2Api": (((9, 2), _END),),
    "AclPolicies": (((7, 2), _END),),
    "RemoteSubnet": (((9, 2), _END),),
    "HostRoute": (((9, 2), _END),),
    "DSR": (((9, 3), (10, 0)), ((10, 2), _END)),
    "Slash32EndpointPrefixes": (((9, 3), (10, 0)), ((10, 4), _END)),
    "VxlanPort": (((10, 3), _END),),
    "L4Proxy": (
        ((9, 5), (10, 0)),
        ((10, 5), (11, 0)),
        ((11, 11), (12, 0)),
        ((12, 1), (13, 0)),
        ((13, 1), _END),
    ),
    "AclSupportForProtocol252": (((11, 0), _END),),
    "IPv6DualStack": (((11, 10), _END),),
    "SessionAffinity": (((12, 0), _END),),
    "SetPolicy": (((13, 0), _END),),
    "L4WfpProxy": (((13, 2), _END),),
    "TierAcl": (((14, 0), _END),),
    "NetworkACL": (((15, 0), _END),),
    "NestedIpSet": (((15, 0), _END),),
    "DisableHostPort": (((15, 1), _END),),
    "ModifyLoadBalancer": (((15, 4), _END),),
    "Accelnet": (((15, 4), _END),),
}


def supports(version: HnsVersion, feature: str) -> bool:
    return any(first <= version < last for first, last in FEATURES[feature])


def _nested(x: object) -> bool:
    return isinstance(x, p.SetPolicy) and x.settings.policy_type == "NESTEDIPSET"


def _of_vxlan(x: object) -> bool:
    if isinstance(x, (p.Acl, p.NetworkAcl)):
        return VXLAN in parse_acl(x.settings).protocols
    return isinstance(x, p.TierAcl) and any(VXLAN in r.protocols for r in parse_tier(x.settings).rules)


_POLICIES: tuple[tuple[Callable[[object], bool], str], ...] = (
    (lambda x: isinstance(x, p.RemoteSubnetRoute), "RemoteSubnet"),
    (lambda x: isinstance(x, p.HostRoute), "HostRoute"),
    (lambda x: isinstance(x, p.VxlanPort), "VxlanPort"),
    (lambda x: isinstance(x, p.Acl), "AclPolicies"),
    (lambda x: isinstance(x, p.L4Proxy), "L4Proxy"),
    (lambda x: isinstance(x, p.L4WfpProxy), "L4WfpProxy"),
    (lambda x: isinstance(x, p.SetPolicy), "SetPolicy"),
    (_nested, "NestedIpSet"),
    (lambda x: isinstance(x, p.TierAcl), "TierAcl"),
    (lambda x: isinstance(x, p.NetworkAcl), "NetworkACL"),
    (_of_vxlan, "AclSupportForProtocol252"),
)


def lacks(version: HnsVersion) -> dict[str, str]:
    """What a host of this HNS version cannot do of what others can, and why, for people. Names: model/capabilities.py.

    Nobody's HNS has IPv6 on overlay networks (Microsoft, "Windows container networking": NAT and overlay networks do not
    support IPv6)."""
    own = f"HNS {version[0]}.{version[1]}"
    out = {IPV6: "HNS, on every Windows, carries IPv4 alone on overlay networks"}
    if not supports(version, "V2Api"):
        out[OVERLAY] = (
            f"{own} has no HCN v2 documents, so no overlay network and no routing mesh of ours; they came with "
            "Windows Server 2019 (HNS 9.2)"
        )
    if not supports(version, "DSR"):
        out[DIRECT_RETURN] = (
            f"{own} has no direct server return, so clients of services are seen by their host's address; it came with "
            "HNS 10.2"
        )
    if not supports(version, "SessionAffinity"):
        out[AFFINITY] = f"{own} keeps no client with its task; that came with HNS 12.0"
    return out


NO_WAY_BACK = {  # of a host with Windows' HNS; emulated ones have our data path
    CLIENT_ADDRESS: "HNS, on every Windows, brings answers to clients outside back between nodes by source translation "
    "alone: tasks here see the ingress address of the node their client came in by, and tasks on other nodes see this "
    "host's where clients come in by it"
}


def check_version(d: Document, version: HnsVersion) -> None:
    """Refuse what an HNS of `version` does not know. Raises HcnError."""
    if isinstance(d, (HostComputeNetwork, HostComputeEndpoint)):
        for policy in d.policies:
            for is_it, feature in _POLICIES:
                if is_it(policy):
                    _need(feature, version, Code.INVALID_POLICY_TYPE, f"Policies: {p.type_name(policy)}")
    elif isinstance(d, HostComputeLoadBalancer):
        if d.flags & LoadBalancerFlags.EnableDirectServerReturn:
            _need("DSR", version, Code.NOT_SUPPORTED, "Flags: EnableDirectServerReturn")
        if any(m.distribution_type for m in d.port_mappings):
            _need("SessionAffinity", version, Code.NOT_SUPPORTED, "PortMappings.DistributionType")


def _need(feature: str, version: HnsVersion, code: Code, field: str) -> None:
    if not supports(version, feature):
        spans = FEATURES[feature]
        raise HcnError(
            code,
            f"{field}: HNS {version[0]}.{version[1]} has no {feature}; it came in {spans[-1][0][0]}.{spans[-1][0][1]}",
        )


def check_modify_balancer(version: HnsVersion) -> None:
    """Raises HcnError E_NOTIMPL before 15.4, as Windows does: clients delete and create then."""
    if not supports(version, "ModifyLoadBalancer"):
        raise HcnError(
            Code.NOT_IMPLEMENTED, f"HcnModifyLoadBalancer came in HNS 15.4, this is {version[0]}.{version[1]}"
        )
