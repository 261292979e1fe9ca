"""The swarm in a lab as the demo and tests look at it, through the Engine API: nodes, services, tasks and
why.

Owns queries and the sentences that say why a task is where it is. Must not change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from overlace.lab import engine
from overlace.lab.lab import Lab
from overlace.model.specs import VNI_OPTION

EMULATED_LABEL = "com.overlace.emulated"
_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}  # as images name architectures, as kernels do


class NodeInfo(msgspec.Struct, frozen=True):
    """A node as `docker node inspect` shows it. `os_version` is the Windows build or the Linux kernel."""

    id: str
    hostname: str
    os: str
    architecture: str
    os_version: str
    state: str
    availability: str
    role: str
    emulated: bool


class TaskInfo(msgspec.Struct, frozen=True):
    """A task as GET /tasks shows it; `addresses` by network name, without prefix length."""

    id: str
    name: str
    service: str
    slot: int
    node: str
    state: str
    desired: str
    message: str
    error: str
    addresses: dict[str, str]


class Cluster:
    """Reads the swarm through the manager's socket."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def _get(self, url: str) -> Any:
        return engine.call(self._lab.manager.socket, "GET", url)

    def nodes(self) -> list[NodeInfo]:
        found = []
        for node in self._get("/nodes"):
            said = node["Description"]
            platform, labels = said["Platform"], said["Engine"].get("Labels") or {}
            found.append(
                NodeInfo(
                    id=node["ID"],
                    hostname=said["Hostname"],
                    os=platform["OS"],
                    architecture=platform["Architecture"],
                    os_version=platform.get("OSVersion") or self._os_version(said["Hostname"]),
                    state=node["Status"]["State"],
                    availability=node["Spec"]["Availability"],
                    role=node["Spec"]["Role"],
                    emulated=EMULATED_LABEL in labels,
                )
            )
        return sorted(found, key=lambda node: node.hostname)

    def _os_version(self, hostname: str) -> str:
        """Docker keeps no build in a node's description; each daemon tells its own in GET /info."""
        return str(engine.call(self._lab.host(hostname).socket, "GET", "/info").get("OSVersion") or "?")

    def services(self) -> dict[str, dict[str, Any]]:
        """Services by name."""
        return {service["Spec"]["Name"]: service for service in self._get("/services")}

    def tasks(self, *, running: bool = True) -> list[TaskInfo]:
        """Tasks by name and slot; with `running`, only those that are meant to run."""
        hosts = {node["ID"]: node["Description"]["Hostname"] for node in self._get("/nodes")}
        services = {service["ID"]: service["Spec"]["Name"] for service in self._get("/services")}
        found = []
        for task in self._get("/tasks"):
            if (running and task["DesiredState"] != "running") or task["ServiceID"] not in services:
                continue
            service, slot = services[task["ServiceID"]], task.get("Slot") or 0
            found.append(
                TaskInfo(
                    id=task["ID"],
                    name=f"{service}.{slot or task.get('NodeID', '')}",
                    service=service,
                    slot=slot,
                    node=hosts.get(task.get("NodeID") or "", ""),
                    state=task["Status"]["State"],
                    desired=task["DesiredState"],
                    message=task["Status"].get("Message") or "",
                    error=task["Status"].get("Err") or "",
                    addresses={
                        each["Network"]["Spec"]["Name"]: each["Addresses"][0].partition("/")[0]
                        for each in task.get("NetworksAttachments") or ()
                        if each.get("Addresses")
                    },
                )
            )
        return sorted(found, key=lambda task: (task.service, task.slot, task.id))

    def networks_by_vni(self) -> dict[int, str]:
        found = {}
        for network in self._get("/networks"):
            for vni in ((network.get("Options") or {}).get(VNI_OPTION) or "").split(","):
                if vni.isdigit():
                    found[int(vni)] = network["Name"]
        return found

    def virtual_addresses(self) -> dict[str, str]:
        """Service name by virtual address."""
        found = {}
        for name, service in self.services().items():
            for each in (service.get("Endpoint") or {}).get("VirtualIPs") or ():
                found[each["Addr"].partition("/")[0]] = name
        return found


def _platform_fits(platform: dict[str, Any], node: NodeInfo) -> bool:
    system, machine = platform.get("OS") or "", platform.get("Architecture") or ""
    return (not system or system == node.os) and (
        not machine or _NAMES.get(machine, machine) == _NAMES.get(node.architecture, node.architecture)
    )


def explain_placement(service: dict[str, Any], nodes: Sequence[NodeInfo]) -> str:
    """Say why a service's tasks are where they are: the image's platforms, constraints, and what is left
    to spread over.

    `service` is a service of the Engine API.
    """
    placement = service["Spec"]["TaskTemplate"].get("Placement") or {}
    platforms = placement.get("Platforms") or []
    reasons = []
    fitting = [node for node in nodes if node.state == "ready" and node.availability == "active"]
    if platforms:
        words = {
            f"{each.get('OS', '')}/{each.get('Architecture', '')} {each.get('OSVersion', '')}".strip()
            for each in platforms
        }
        fitting = [node for node in fitting if any(_platform_fits(each, node) for each in platforms)]
        reasons.append(f"image is for {', '.join(sorted(words))}")
    if placement.get("Constraints"):
        reasons.append(f"constraint {', '.join(placement['Constraints'])}")
    for preference in placement.get("Preferences") or ():
        reasons.append(f"spread over {preference['Spread']['SpreadDescriptor']}")
    names = ", ".join(node.hostname for node in fitting) or "no node"
    if len(fitting) == 1:
        reasons.append(f"only {names} can run it")
    else:
        reasons.append(f"{names} can run it; fewest tasks first")
    return "; ".join(reasons)
