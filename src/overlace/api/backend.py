"""What the Engine API needs of the daemon it fronts: one object the composition root hands over.

Owns the Protocol and the plain data that crosses it. Must not know how a daemon is put together, nor HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import aiohttp
import msgspec

from overlace.agent.standalone.keeper import Keeper
from overlace.manager.paths import NetworkHealth
from overlace.model.findings import Question, Said
from overlace.model.generic import GenericResources
from overlace.model.objects import Network, Subnet, Task
from overlace.model.paths import Notice, PathState
from overlace.model.specs import (
    ConfigSpec,
    Doc,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    SecretSpec,
    ServiceSpec,
    SwarmSpec,
)
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.vfp.reasons import Counter
from overlace.network.vfp.show import PortShown
from overlace.runtime.base import LogOptions, RegistryAuth, Runtime
from overlace.store.base import Store

# -- requests the daemon carries out -------------------------------------------------------------------------


class InitRequest(Doc, frozen=True):
    """POST /swarm/init, checked and completed by `swarm_requests.check_init`."""

    listen_addr: str = ""  # host:port after the check
    advertise_addr: str = ""  # host:port after the check; empty: the daemon's underlay address
    data_path_addr: str = ""  # IP after the check; empty: same as the advertised one
    data_path_port: int = 0  # 4789 after the check when not given
    default_addr_pool: list[str] = msgspec.field(default_factory=list)
    subnet_size: int = 0  # 24 after the check when not given
    force_new_cluster: bool = False
    spec: SwarmSpec = SwarmSpec()
    auto_lock_managers: bool = False
    availability: str = ""  # active after the check when not given


class JoinRequest(Doc, frozen=True):
    """POST /swarm/join, checked and completed by `swarm_requests.check_join`."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: list[str] = msgspec.field(default_factory=list)  # host:port each after the check
    join_token: str = ""
    availability: str = ""


# -- what the daemon says of itself --------------------------------------------------------------------------


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of this host and daemon that do not change while it runs."""

    id: str  # of this engine, kept in the data root
    hostname: str
    data_root: str
    os: str = "linux"  # what this host is in the swarm: linux | windows
    os_version: str = ""  # Windows build, or the kernel's release
    system: str = ""  # what really runs here, as people know it: Debian GNU/Linux 12 (bookworm)
    kernel: str = ""  # and its kernel: Linux 6.1.0
    memory: int = 0  # bytes
    emulated: bool = False  # a Windows host without a Windows kernel
    insecure_registries: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    generic: GenericResources = GenericResources()  # what this host offers to reserve
    hosts: tuple[str, ...] = ()  # where the API listens, unix:// and tcp://
    runtime: str = "runc"
    started_at: int = 0  # ns


class Peer(msgspec.Struct, frozen=True):
    node_id: str
    addr: str  # host:port


class LocalSwarm(msgspec.Struct, frozen=True, kw_only=True):
    """This node's own part in a swarm, as it knows it without asking a manager."""

    state: Literal["inactive", "pending", "active", "error", "locked"] = "inactive"
    node_id: str = ""
    node_addr: str = ""
    control_available: bool = False
    error: str = ""
    remote_managers: tuple[Peer, ...] = ()


class LocalEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on a network of this host."""

    container_id: str
    name: str
    endpoint_id: str = ""
    mac: str = ""
    address: str = ""  # with prefix length
    address6: str = ""  # likewise, "" without IPv6


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network this host takes part in, from the node's own view; `bridge` is the host's own."""

    id: str
    name: str
    driver: str = "overlay"
    scope: str = "swarm"  # swarm | local
    created_at: int = 0
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    subnets: tuple[Subnet, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    endpoints: tuple[LocalEndpoint, ...] = ()
    peers: tuple[tuple[str, str], ...] = ()  # (node name, underlay address)


class ContainerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One network of one container, for `docker inspect`."""

    network: str  # name
    network_id: str
    endpoint_id: str = ""
    address: str = ""  # with prefix length
    address6: str = ""  # likewise, "" without IPv6
    gateway: str = ""
    gateway6: str = ""
    ports6: bool = False  # ports in host mode lead here over IPv6, too
    mac: str = ""
    aliases: tuple[str, ...] = ()


# -- the manager side ----------------------------------------------------------------------------------------


class ControlVerbs(Protocol):
    """`manager.control.Control`: the only way the API changes the store."""

    async def create_service(self, spec: ServiceSpec, registry_auth: str = "") -> tuple[str, list[str]]: ...

    async def update_service(
        self,
        id: str,
        version: int,
        spec: ServiceSpec,
        *,
        registry_auth: str = "",
        registry_auth_from: str = "spec",
        rollback: str = "",
    ) -> list[str]: ...

    async def remove_service(self, id: str) -> None: ...

    async def create_network(self, spec: NetworkSpec) -> tuple[str, str]: ...

    async def set_network_policy(self, id: str, labels: Mapping[str, str]) -> None: ...

    async def remove_network(self, id: str) -> None: ...

    async def create_secret(self, spec: SecretSpec) -> str: ...

    async def update_secret(self, id: str, version: int, spec: SecretSpec) -> None: ...

    async def remove_secret(self, id: str) -> None: ...

    async def create_config(self, spec: ConfigSpec) -> str: ...

    async def update_config(self, id: str, version: int, spec: ConfigSpec) -> None: ...

    async def remove_config(self, id: str) -> None: ...

    async def update_node(self, id: str, version: int, spec: NodeSpec) -> None: ...

    async def remove_node(self, id: str, force: bool = False) -> None: ...

    async def update_swarm(
        self, version: int, spec: SwarmSpec, rotate_worker_token: bool, rotate_manager_token: bool
    ) -> None: ...


class TaskLogLine(Protocol):
    """One line of one task's log."""

    @property
    def task(self) -> Task: ...

    @property
    def timestamp(self) -> int: ...  # ns

    @property
    def stream(self) -> str: ...  # stdout | stderr

    @property
    def data(self) -> bytes: ...


class LogSource(Protocol):
    """`manager.logs.LogBroker`."""

    def subscribe(
        self, task_ids: Sequence[str], options: LogOptions, *, service_id: str = ""
    ) -> AsyncIterator[TaskLogLine]: ...


class ImagePlatform(Protocol):
    @property
    def os(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def os_version(self) -> str: ...

    @property
    def variant(self) -> str: ...


class ResolvedImage(Protocol):
    """What a registry says of a reference."""

    @property
    def digest(self) -> str: ...

    @property
    def media_type(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def platforms(self) -> Sequence[ImagePlatform]: ...


class ImageResolver(Protocol):
    """`manager.registry.Resolver`."""

    async def inspect(self, reference: str, auth: RegistryAuth | None = None) -> ResolvedImage: ...


class LeaderAddress(Protocol):
    @property
    def node_id(self) -> str: ...

    @property
    def addr(self) -> str: ...


class PathSource(Protocol):
    """`manager.paths.PathBook`: what the nodes measured of the ways between them."""

    def health(self, network: Network) -> NetworkHealth: ...

    def all(self) -> Mapping[tuple[str, str], PathState]:
        """By (from node, to node)."""

    def watch(self, hear: Callable[[Notice], None]) -> Callable[[], None]:
        """Have `hear` called with what is news; returns how to stop that."""


class ManagerHandle(Protocol):
    """`control` and `logs` raise NotLeading on a manager that does not lead; `store` is every manager's."""

    @property
    def node_id(self) -> str: ...

    @property
    def store(self) -> Store: ...

    @property
    def control(self) -> ControlVerbs: ...

    @property
    def logs(self) -> LogSource: ...

    def leader(self) -> LeaderAddress | None:
        """None: nobody is known to lead now."""

    async def wait_leader(self) -> LeaderAddress:
        """Raises NoLeader after a while."""

    def ask(
        self, leader: Any, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """An Engine API request put to the leader. Raises Unavailable."""

    async def caught_up(self, revision: int) -> None:
        """Until this manager's store is at the leader's revision, or for a few seconds."""

    @property
    def resolver(self) -> ImageResolver: ...

    @property
    def paths(self) -> PathSource: ...

    async def ask_node(self, node_id: str, question: Question) -> Said:
        """Have a host look at itself. Never raises."""


# -- this host's network ---------------------------------------------------------------------------------


class Switch(Protocol):
    """`network.switch.Switch`: what is programmed on this host."""

    def ports(self) -> list[PortShown]: ...

    async def layers(self, port: str = "") -> list[PortShown]:
        """Raises NotFound."""

    async def counters(self) -> list[Counter]: ...

    async def flows(self, port: str = "") -> list[UnifiedFlow]:
        """Raises NotFound."""

    async def watched(self) -> int:
        """Seconds to come in which every connection is remembered; 0: short ones are not."""

    async def drops(self) -> dict[tuple[str, str], int]:
        """By network and reason."""

    def notices(self, after: int) -> list[tuple[int, Notice]]:
        """What came later than `after`, with when (ns)."""


# -- the daemon ----------------------------------------------------------------------------------------------


class Backend(Protocol):
    """Everything the API asks of its daemon. Attributes may change while it runs (`manager` comes and
    goes)."""

    @property
    def runtime(self) -> Runtime: ...

    @property
    def containers(self) -> Keeper:
        """The standalone containers of this host."""

    @property
    def options(self) -> EngineOptions: ...

    @property
    def manager(self) -> ManagerHandle | None:
        """None on workers and outside a swarm."""

    @property
    def switch(self) -> Switch | None:
        """None outside a swarm: nothing is programmed then."""

    def swarm(self) -> LocalSwarm: ...

    async def swarm_init(self, request: InitRequest) -> str:
        """Carry out a checked request; returns the node id."""

    async def swarm_join(self, request: JoinRequest) -> None:
        """Carry out a checked request; returns once the node is a member.

        Raises InvalidArgument (token, foreign CA), Unavailable (no manager answers, in time).
        """

    async def swarm_leave(self, force: bool) -> None: ...

    def local_networks(self) -> Sequence[LocalNetwork]:
        """The host's own `bridge` and every swarm network this node takes part in."""

    async def container_addresses(self, container_id: str) -> Sequence[ContainerAddress]:
        """The networks of one container on this host; empty when it has none (any more)."""

    async def container_ports(self, container_id: str) -> Sequence[PortConfig]:
        """The host's ports that lead to one container (publish mode host), numbers filled in."""
