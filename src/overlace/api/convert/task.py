"""Tasks as the Engine API shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from overlace.api.codec import rfc3339
from overlace.api.convert.common import Json, document, header
from overlace.api.convert.network import swarm_network
from overlace.model.generic import documents
from overlace.model.objects import Network, Task


def task(found: Task, networks: Mapping[str, Network]) -> Json:
    """`networks` by id: each attachment shows its whole network, as far as it is there."""
    status = found.status
    shown_status: Json = {
        "Timestamp": rfc3339(status.timestamp or found.created_at),
        "State": status.state.word,
        "Message": status.message,
    }
    if status.err:
        shown_status["Err"] = status.err
    if status.container is not None:
        shown_status["ContainerStatus"] = {
            "ContainerID": status.container.container_id,
            "PID": status.container.pid,
            "ExitCode": status.container.exit_code,
        }
    shown_status["PortStatus"] = (
        {"Ports": [document(p) for p in status.port_status]} if status.port_status else {}
    )
    spec = document(found.spec)
    spec.setdefault("Runtime", "container")
    shown = {**header(found), "Labels": {}, "Spec": spec, "ServiceID": found.service_id}
    if found.slot:
        shown["Slot"] = found.slot
    if found.node_id:
        shown["NodeID"] = found.node_id
    shown["Status"] = shown_status
    if found.generic:
        shown["GenericResources"] = documents(found.generic)
    shown["DesiredState"] = found.desired_state.word
    if found.networks:
        ingress = {id for id, network in networks.items() if network.spec.ingress}
        shown["NetworksAttachments"] = [  # ingress first, as Docker has it
            {
                "Network": swarm_network(networks[a.network_id])
                if a.network_id in networks
                else {"ID": a.network_id},
                "Addresses": list(a.addresses),
                **({"Aliases": list(a.aliases)} if a.aliases else {}),
            }
            for a in sorted(found.networks, key=lambda a: a.network_id not in ingress)
        ]
    if found.job_iteration is not None:
        shown["JobIteration"] = {"Index": found.job_iteration} if found.job_iteration else {}
    return shown
