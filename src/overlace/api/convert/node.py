"""Nodes as the Engine API shows them. Pure.

A Windows build and emulation are shown where people look: the platform's OSVersion and engine labels.
"""

from __future__ import annotations

from overlace.api.convert.cluster import tls_info
from overlace.api.convert.common import Json, document, header
from overlace.model.generic import offered_documents
from overlace.model.labels import EMULATED, LACKS, OS_VERSION
from overlace.model.objects import Node, NodeDescription
from overlace.model.states import NodeState


def description(found: NodeDescription, ca_cert_pem: str) -> Json:
    labels = dict(found.engine_labels)
    generic = offered_documents(found.resources.generic)
    platform = {"Architecture": found.architecture, "OS": found.os}
    if found.os_version:
        platform["OSVersion"] = found.os_version
        if found.os == "windows":
            labels.setdefault(OS_VERSION, found.os_version)
    labels |= {f"{LACKS}.{name}": why for name, why in found.lacks.items()}
    if found.emulated:
        labels[EMULATED] = found.os
    return {
        "Hostname": found.hostname,
        "Platform": platform,
        "Resources": {
            "NanoCPUs": found.resources.nano_cpus,
            "MemoryBytes": found.resources.memory_bytes,
            **({"GenericResources": generic} if generic else {}),
        },
        "Engine": {
            "EngineVersion": found.engine_version,
            "Labels": labels,
            "Plugins": [{"Type": kind, "Name": name} for kind, name in found.plugins],
        },
        "TLSInfo": tls_info(ca_cert_pem),
    }


def node(found: Node, ca_cert_pem: str) -> Json:
    about = found.description
    document_ = {
        **header(found),
        "Spec": document(found.spec),
        "Description": description(about, ca_cert_pem)
        if about
        else {"Platform": {}, "Resources": {}, "Engine": {}, "TLSInfo": {}},
        "Status": {"State": found.status.state.word, "Addr": found.status.addr},
    }
    message = found.status.message or (
        about.trouble if about and found.status.state == NodeState.READY else ""
    )
    if message:
        document_["Status"]["Message"] = message
    if found.manager_status:
        status = found.manager_status
        document_["ManagerStatus"] = {"Reachability": status.reachability, "Addr": status.addr}
        if status.leader:
            document_["ManagerStatus"]["Leader"] = True
    return document_
