"""The swarm in a lab as the demo and tests look at it, through the Engine API: nodes, services, tasks and
why.

Owns queries. Must not change anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overlace.lab import engine
from overlace.lab.lab import Lab
from overlace.model.labels import EMULATED
from overlace.model.specs import VNI_OPTION


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
                    emulated=EMULATED in labels,
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

    def why(self, service: str) -> str:
        """Which nodes can run a service and why the others cannot, in the manager's words (`overlace why`)."""
        return str(self._get(f"/overlace/v1/why?of={service}")["where"])

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
