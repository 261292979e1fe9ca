"""Hypothesis strategies for HCN documents, from the schema's own description (hcn_schema.json).

Owns shapes, not sense: any member may be absent, enumerations come as words in any case or numbers.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

SCHEMA = json.loads(Path(__file__).with_name("hcn_schema.json").read_text())
ENUMS: dict[str, list[str]] = SCHEMA["enums"]
STRUCTS: dict[str, list[list[str]]] = SCHEMA["structs"]
BASE = {"Owner", "Version", "AdditionalParams", "Health", "SchemaVersion", "Telemetry", "State"}
BITS = {name for name in ENUMS if name.endswith("Flags")} | {
    "ProtocolType", "IovInterruptModerationType", "LoadBalancerDistribution",
}  # fmt: skip
SETTINGS = {
    "PortMapping": "PortMappingPolicySetting", "ACL": "AclPolicySetting", "QOS": "QosPolicySetting", "L2Driver": "",
    "OutBoundNAT": "OutboundNatPolicySetting", "SDNRoute": "SDNRoutePolicySetting",
    "L4Proxy": "L4ProxyPolicySetting", "L4WFPPROXY": "L4WfpProxyPolicySetting",
    "ProviderAddress": "ProviderAddressEndpointPolicySetting", "PortName": "PortnameEndpointPolicySetting",
    "EncapOverhead": "EncapOverheadEndpointPolicySetting",
    "InterfaceConstraint": "InterfaceConstraintEndpointPolicySetting", "Encryption": "EncryptionPolicySetting",
    "VLAN": "VlanPolicySetting", "InterfaceParameters": "InterfaceParametersPolicySetting",
    "Iov": "IovPolicySetting", "TierAcl": "TierAclPolicySetting",
    "SourceMacAddress": "SourceMacAddressNetworkPolicySetting", "NetAdapterName": "NetAdapterNameNetworkPolicySetting",
    "VSwitchExtension": "VSwitchExtensionNetworkPolicySetting", "DrMacAddress": "DrMacAddressNetworkPolicySetting",
    "AutomaticDNS": "AutomaticDNSNetworkPolicySetting", "RemoteSubnetRoute": "RemoteSubnetRoutePolicySetting",
    "VxlanPort": "VxlanPortPolicySetting", "HostRoute": "HostRoutePolicySetting", "SetPolicy": "SetPolicySetting",
    "LayerConstraint": "LayerConstraintNetworkPolicySetting", "NetworkACL": "NetworkAclPolicySetting",
    "VSID": "VsidPolicySetting",
}  # fmt: skip
# members a policy is nothing without, as Go clients always send them
REQUIRED = {
    "IsolationId", "Port", "Address", "NetworkAdapterName", "SourceMacAddress", "ExtensionID", "ProviderAddress",
    "DestinationPrefix", "DistributedRouterMacAddress", "Id", "Action", "Direction", "TierAclRuleAction", "Name",
    "Order", "MaximumOutgoingBandwidthInBytes", "Protocol", "InternalPort", "ExternalPort", "Overhead", "Type",
}  # fmt: skip
WIDTH = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 63}
words = st.text("abcXYZ019.-/: ", max_size=12)


@cache
def value(kind: str) -> st.SearchStrategy[Any]:
    """Any value of a schema type."""
    listed = re.fullmatch(r"<(\w+)> array", kind)
    if listed:
        inner = policy(f"{listed[1]}Type") if listed[1].endswith("Policy") else value(listed[1])
        return st.lists(inner, max_size=3)
    if kind in ENUMS:
        named = st.sampled_from(ENUMS[kind]).flatmap(lambda w: st.sampled_from([w, w.lower(), w.upper()]))
        return named if kind in BITS else named | st.integers(0, len(ENUMS[kind]) - 1)
    if kind == "NamespaceResource":
        return struct(kind).map(lambda r: {**r, "Data": {"Id": "x"}})
    if kind in STRUCTS:
        return struct(kind)
    if kind in WIDTH:
        return st.integers(0, 128 if kind == "uint8" else 2 ** WIDTH[kind] - 1)
    if kind == "bool":
        return st.booleans()
    if kind == "Guid":
        return st.uuids().map(str)
    if kind == "Any":
        return st.none() | st.booleans() | words | st.dictionaries(st.sampled_from("ab"), words, max_size=2)
    return words


@cache
def struct(name: str) -> st.SearchStrategy[dict[str, Any]]:
    fields = {f: value(kind) for f, kind in STRUCTS[name]}
    settings = name.endswith("PolicySetting") or name in ("TierAclRule", "PrioritizedAuthenticationMethod")
    must = {f for f in fields if settings and f in REQUIRED} | (
        {"Type", "Data"} if name == "NamespaceResource" else set()
    )
    return st.fixed_dictionaries(
        {f: s for f, s in fields.items() if f in must},
        optional={f: s for f, s in fields.items() if f not in must and f != "SchemaVersion"},
    )


@cache
def policy(enum: str) -> st.SearchStrategy[dict[str, Any]]:
    """A policy of an object: its type as word or number, and settings of that type."""

    def of(index: int) -> st.SearchStrategy[dict[str, Any]]:
        name = ENUMS[enum][index]
        settings = struct(SETTINGS[name]) if SETTINGS[name] else st.just({})
        return st.fixed_dictionaries(
            {"Type": st.sampled_from([name, name.lower(), index]), "Settings": settings}
        )

    return st.integers(0, len(ENUMS[enum]) - 1).flatmap(of)
