"""What the agent asks of a host's network, the same on both operating systems.

Owns the contract between agent and network driver. Must not know HNS documents, eBPF or swarm scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from overlace.model.findings import Question, Said
from overlace.model.netview import NetView
from overlace.model.objects import NetworkAttachment, Task
from overlace.model.paths import PathState
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, Items, kept_policy
from overlace.model.specs import PortConfig, host_network
from overlace.model.traffic import kept_egress_limit


class TaskNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One task's whole network wish. Without attachments the task gets the node's local NAT network
    (`bridge`)."""

    task_id: str
    task_name: str
    service_id: str
    service_name: str
    attachments: tuple[NetworkAttachment, ...] = ()
    host_ports: tuple[PortConfig, ...] = ()  # publish mode host
    local: bool = False  # beside its attachments, the node's own NAT network
    mode: str = ""  # "host": the host's own stack, "none": loopback alone; else as `attachments` say
    nameservers: tuple[str, ...] = ()  # the service's own, for what is no name of the swarm
    # what its service's labels said as the task was made; what the view says of the service now comes first
    allowed: Items | None = None
    allowed_to: Items | None = None
    egress: int = 0  # bytes per second

    @property
    def on_local(self) -> bool:
        """Whether it is on the node's own NAT network."""
        return self.local or not self.attachments

    @classmethod
    def of(cls, task: Task, host_ports: tuple[PortConfig, ...]) -> TaskNetwork:
        """What `task` asks for; `host_ports` as wished (the agent) or as in force (who looks at it later)."""
        container = task.spec.container_spec
        dns = container.dns_config if container is not None else None
        return cls(
            task_id=task.id,
            task_name=task.name,
            service_id=task.service_id,
            service_name=task.service_name,
            attachments=task.networks,
            host_ports=host_ports,
            mode=mode if (mode := host_network(task.spec.networks)) != "bridge" else "",
            nameservers=tuple(dns.nameservers) if dns is not None else (),
            allowed=kept_policy(ALLOW_FROM, task.service_labels),
            allowed_to=kept_policy(ALLOW_TO, task.service_labels),
            egress=kept_egress_limit(task.service_labels),
        )


class Inside(msgspec.Struct, frozen=True):
    """A container's interface, as one looks for it."""

    endpoint_id: str
    sandbox: Path
    ifname: str
    default_route: bool


class Attached(msgspec.Struct, frozen=True):
    """Where the task's interfaces live: what a runtime and `docker inspect` need."""

    sandbox: Path | None  # network namespace to join; None: the host's own, or a new one with loopback alone
    resolv_conf: str  # content for the container
    addresses: dict[str, str]  # network name -> address/prefix
    macs: dict[str, str]
    gateways: dict[str, str]
    host_ports: tuple[PortConfig, ...] = ()  # host-mode ports in force, published numbers filled in
    # of the networks that have IPv6
    addresses6: dict[str, str] = {}
    gateways6: dict[str, str] = {}
    ports6: str = ""  # the network by which `host_ports` are reached over IPv6, too; "": by none


class NetworkDriver(Protocol):
    # told what was measured of the way to other hosts, as it changes
    on_paths: Callable[[Sequence[PathState]], None]

    def paths(self) -> list[PathState]:
        """All of it."""

    async def ask(self, question: Question) -> Said:
        """Look at this host. What cannot be done is said, not raised."""

    async def open(self, node_id: str) -> None:
        """Take over what an earlier process left; traffic of running containers goes on untouched."""

    async def apply_view(self, view: NetView, changed: set[str] | None) -> None:
        """Make the host follow `view`; `changed` holds the keys that differ since the last call, None =
        anything."""

    async def attach(self, task: TaskNetwork, netns: Path | None = None) -> Attached:
        """Sandbox, endpoints, addresses, DNS. Idempotent: also what a restarted agent calls for a running
        container. `netns`: the sandbox is this namespace, which the runtime made, on Windows the id of a container that
        runs; None: one is made. With `netns`, a wish for other networks than before changes those alone.

        Raises InvalidArgument / Conflict (a host port is taken: `port ...`) / Unavailable (a network of the
        task is not in the view yet: retry).
        """

    async def detach(self, task_id: str) -> None:
        """Give back everything `attach` made. Unknown task: no error."""

    async def keep_only(self, task_ids: set[str]) -> None:
        """Collect sandboxes and endpoints of every other task (after a restart)."""

    async def close(self) -> None:
        """Let go without touching traffic."""

    async def leave(self, kept: Collection[str] = ()) -> None:
        """The node leaves the swarm: nothing of ours stays in the kernel, but what `kept` (task ids) have on the host's
        own network."""

    def describe(self) -> dict[str, object]:
        """Facts for node description and diagnosis: underlay address, mtu, data path."""


@runtime_checkable
class Prepares(Protocol):
    """A further verb of a driver whose endpoints may be made before there is anything to attach them to (Windows)."""

    async def prepare(self, task: TaskNetwork) -> Attached:
        """The task's endpoints, attached to nothing: `attach` finds them. Idempotent; raises as `attach`."""
