"""GET /info: what `docker info` prints, and what many commands look up first (`Swarm.NodeID`,
`ControlAvailable`).

Owns that document. Must not change anything.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

from overlace.api.backend import Backend, EngineOptions, LocalSwarm, ManagerHandle
from overlace.api.codec import rfc3339
from overlace.api.convert.cluster import cluster_info
from overlace.api.version import SERVER_VERSION
from overlace.manager.allocate.room import explain_pool
from overlace.model.errors import NoLeader, OverlaceError, rpc_text
from overlace.model.generic import offered_documents
from overlace.model.labels import EMULATED, OS_VERSION
from overlace.model.objects import Cluster, Network, Node

_TWO_MANAGERS = (
    "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n"
    "         no fault tolerance, and poses a high risk to lose control over the cluster."
)


async def describe(backend: Backend, tools: dict[str, str], listeners: int) -> dict[str, Any]:
    options = backend.options
    containers = Counter(c.status for c in await backend.runtime.list())
    images = await backend.runtime.images()
    runc = tools.get("runc") or tools.get("crun") or ""
    return {
        "ID": options.id,
        "Containers": containers.total(),
        "ContainersRunning": containers["running"],
        "ContainersPaused": 0,
        "ContainersStopped": containers.total() - containers["running"],
        "Images": len(images),
        "Driver": "overlayfs",
        "DriverStatus": [],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": True,
        "SwapLimit": False,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": False,
        "CPUSet": False,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": _open_files(),
        "OomKillDisable": False,
        "NGoroutines": 0,
        "SystemTime": rfc3339(time.time_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
        "NEventsListener": listeners,
        "KernelVersion": _kernel(options),
        "OperatingSystem": operating_system(options),
        "OSVersion": options.os_version,
        "OSType": options.os,
        "Architecture": platform.machine(),
        "IndexServerAddress": "",
        "RegistryConfig": _registries(options),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": options.memory,
        "GenericResources": offered_documents(options.generic) or None,
        "DockerRootDir": options.data_root,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": options.hostname,
        "Labels": engine_labels(options),
        "ExperimentalBuild": False,
        "ServerVersion": SERVER_VERSION,
        "Runtimes": {options.runtime: {"path": options.runtime}},
        "DefaultRuntime": options.runtime,
        "Swarm": swarm_info(backend.swarm(), backend.manager),
        "LiveRestoreEnabled": True,
        "Isolation": "process" if options.os == "windows" else "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": runc, "Expected": runc},
        "InitCommit": {"ID": ""},
        "SecurityOptions": [] if options.os == "windows" else ["name=seccomp,profile=builtin"],
        "ProductLicense": "",
        "DefaultAddressPools": [],
        "Warnings": warnings(options, tools.get("error", "")) + room_warnings(backend.manager),
        "CDISpecDirs": [],
    }


def operating_system(options: EngineOptions) -> str:
    if options.os == "windows":
        text = f"Microsoft Windows (build {options.os_version})"
        if options.emulated:
            return f"{text}, emulated on {options.system}: no Windows kernel"
        return f"{options.system} (build {options.os_version})"
    return options.system


def engine_labels(options: EngineOptions) -> list[str]:
    labels = dict(options.labels)
    if options.os == "windows" and options.os_version:
        labels.setdefault(OS_VERSION, options.os_version)
    if options.emulated:
        labels[EMULATED] = options.os
    return [f"{k}={v}" for k, v in sorted(labels.items())]


def warnings(options: EngineOptions, runtime_error: str) -> list[str]:
    found = [f"WARNING: no container can run on this host: {runtime_error}"] if runtime_error else []
    found += [
        f"WARNING: API is accessible on {host} without encryption: whoever reaches it is root on this host"
        for host in options.hosts
        if host.startswith("tcp://")
    ]
    if options.emulated:
        found.append(
            f"WARNING: this {options.os} host is emulated: its containers are Linux processes, there is no "
            f"{options.os} kernel"
        )
    return found


def room_warnings(manager: ManagerHandle | None) -> list[str]:
    """Networks, and the pool they come from, that are nearly full."""
    if manager is None:
        return []
    try:
        view = manager.store.view()
    except OverlaceError:
        return []
    networks = list(view.all(Network))
    found = [f"network {n.spec.name}: {n.warning}" for n in networks if n.warning]
    found += [text for c in view.all(Cluster) if (text := explain_pool(c, networks))]
    return [f"WARNING: {text}" for text in found]


def swarm_info(swarm: LocalSwarm, manager: ManagerHandle | None) -> dict[str, Any]:
    """`Swarm` of GET /info (moby api/types/swarm Info)."""
    found: dict[str, Any] = {
        "NodeID": swarm.node_id,
        "NodeAddr": swarm.node_addr,
        "LocalNodeState": swarm.state,
        "ControlAvailable": manager is not None and swarm.control_available,
        "Error": swarm.error,
        "RemoteManagers": [{"NodeID": p.node_id, "Addr": p.addr} for p in swarm.remote_managers] or None,
    }
    if manager is None:
        return found
    try:
        view = manager.store.view()
    except OverlaceError as error:
        return found | {"Error": error.message}
    nodes = [n for n in view.all(Node) if not n.removed]
    managers = sum(1 for n in nodes if n.manager_status is not None)
    found |= {"Nodes": len(nodes), "Managers": managers}
    if managers == 2:
        found["Warnings"] = [_TWO_MANAGERS]
    for cluster in view.all(Cluster):
        found["Cluster"] = cluster_info(cluster)
    if manager.leader() is None:
        found["Error"] = rpc_text(NoLeader())
    return found


def _kernel(options: EngineOptions) -> str:
    if options.emulated:
        return f"{options.os_version} (emulated on {options.kernel})"
    return options.os_version


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _registries(options: EngineOptions) -> dict[str, Any]:
    return {
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": [],
        "IndexConfigs": {
            name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False}
            for name in options.insecure_registries
        },
        "Mirrors": None,
    }
