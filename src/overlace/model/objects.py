"""The cluster's objects as the store keeps them: immutable, versioned, one struct per kind.

Owns their shape. Times are integer nanoseconds since the epoch. Must not know how they are stored, decided or shown.
`version` is the store revision of the last write and is set by the store alone.
"""

from __future__ import annotations

from typing import ClassVar, Union

import msgspec

from overlace.model.generic import Claim, GenericResources
from overlace.model.specs import (
    ConfigSpec,
    EndpointSpec,
    Labels,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    SecretSpec,
    ServiceSpec,
    SwarmSpec,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState

SWARM_PORT = 2377  # TCP, where managers are reached
PEER_PORT = 2380  # TCP (IANA: etcd-server), between several managers
VXLAN_PORT = 4789  # UDP (RFC 7348, IANA)


class Base(msgspec.Struct, frozen=True, kw_only=True):
    kind: ClassVar[str]
    id: str
    version: int = 0
    created_at: int = 0
    updated_at: int = 0


# -- node --------------------------------------------------------------------------------------------------------


class NodeResources(msgspec.Struct, frozen=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: GenericResources = GenericResources()


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of its host."""

    hostname: str
    os: str  # linux | windows
    architecture: str  # raw, as the kernel says: x86_64
    os_version: str = ""  # Windows build, e.g. 10.0.20348.2527; Linux: kernel release
    resources: NodeResources = NodeResources()
    engine_version: str = ""
    engine_labels: Labels = {}
    plugins: tuple[tuple[str, str], ...] = ()  # (type, name)
    underlay_address: str = ""  # data path address (VTEP)
    emulated: bool = False
    isolation: tuple[str, ...] = ("process",)  # windows: what this host can run
    mtu: int = 1500  # of the underlay
    # what the host's network cannot do, by the names of capabilities.py, and why, for people
    lacks: dict[str, str] = {}
    can_manage: bool = True  # a daemon on Windows is a worker
    trouble: str = ""  # what keeps this host from taking what managers tell it, and what helps; for people

    @property
    def answers_probes(self) -> bool:
        """Whether its switch answers other hosts' probes: our programs do (emulated hosts have them), VFP does not."""
        return self.os != "windows" or self.emulated


class NodeStatus(msgspec.Struct, frozen=True):
    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""  # address the manager sees
    since: int = 0


class ManagerStatus(msgspec.Struct, frozen=True):
    leader: bool
    reachability: str  # reachable | unreachable
    addr: str  # host:2377


class Node(Base, frozen=True, kw_only=True):
    kind = "node"
    spec: NodeSpec = NodeSpec()
    description: NodeDescription | None = None
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    certificate_serial: str = ""
    removed: bool = False  # tombstone kept out of lists: its certificate is refused
    # per-node address on each network whose subnet it takes part in, "a.b.c.d/24" by network id (ingress: every node)
    network_addresses: dict[str, str] = {}

    @property
    def acting_role(self) -> str:
        """What its certificate has to say: who is demoted stays a manager until the state can do without it."""
        return "manager" if self.manager_status is not None else self.spec.role


# -- service and task --------------------------------------------------------------------------------------------


class VirtualIP(msgspec.Struct, frozen=True):
    network_id: str
    address: str  # with prefix length, "10.0.1.2/24"


class Endpoint(msgspec.Struct, frozen=True):
    """What the allocator gave a service: its spec as resolved, ports with published numbers filled in, VIPs."""

    spec: EndpointSpec = EndpointSpec()
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualIP, ...] = ()


class UpdateStatus(msgspec.Struct, frozen=True):
    state: str  # updating | paused | completed | rollback_started | rollback_paused | rollback_completed
    started_at: int = 0
    completed_at: int = 0
    message: str = ""
    spec_version: int = 0  # the service's spec_version this is about; 0: the current one


class JobStatus(msgspec.Struct, frozen=True):
    iteration: int = 0
    last_execution: int = 0


class Service(Base, frozen=True, kw_only=True):
    kind = "service"
    spec: ServiceSpec
    previous_spec: ServiceSpec | None = None
    spec_version: int = 0  # revision at which `spec` last changed; tasks carry the one they were made from
    endpoint: Endpoint | None = None
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None
    registry_auth: str = ""  # X-Registry-Auth as given, never shown
    image_warning: str = ""


class ContainerStatus(msgspec.Struct, frozen=True):
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0


class TaskStatus(msgspec.Struct, frozen=True):
    state: TaskState = TaskState.NEW
    timestamp: int = 0
    message: str = ""
    err: str = ""
    container: ContainerStatus | None = None
    port_status: tuple[PortConfig, ...] = ()  # host-mode ports in force


class NetworkAttachment(msgspec.Struct, frozen=True):
    """One of a task's networks, as allocated."""

    network_id: str
    addresses: tuple[str, ...]  # with prefix length
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class Task(Base, frozen=True, kw_only=True):
    kind = "task"
    service_id: str
    slot: int = 0  # replicated: from 1; replicated job: from 0; one per node: 0
    node_id: str = ""
    spec: TaskSpec
    spec_version: int = 0
    service_name: str = ""
    service_labels: Labels = {}
    name: str = ""  # <service>.<slot or node id>.<task id>
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    networks: tuple[NetworkAttachment, ...] = ()
    ports: tuple[PortConfig, ...] = ()  # host-mode ports of the endpoint spec
    generic: tuple[Claim, ...] = ()  # generic resources it has on its node, from its assignment
    not_before: int = 0  # restart delay: stays desired READY until then
    job_iteration: int | None = None  # of a job: the run it belongs to
    started_at: int = (
        0  # when a rolling update first saw it RUNNING; its delay and monitor periods count from here
    )

    @property
    def attachment(self) -> bool:
        """Whether it stands for a container outside of services: an address on a network, nothing to run."""
        return self.spec.network_attachment_spec is not None

    @property
    def slot_word(self) -> str:
        """What tells it from its service's other tasks: the slot's number, the node's id when each node has one."""
        return self.name.rpartition(".")[0].rpartition(".")[2]


# -- network, secret, config, cluster ----------------------------------------------------------------------------


class Subnet(msgspec.Struct, frozen=True):
    subnet: str
    gateway: str
    ip_range: str = ""


class Network(Base, frozen=True, kw_only=True):
    kind = "network"
    spec: NetworkSpec
    vni: int = 0  # 0 until allocated
    subnets: tuple[Subnet, ...] = ()
    error: str = ""  # why allocation failed, for people
    warning: str = ""  # what will fail soon, for people


class Secret(Base, frozen=True, kw_only=True):
    kind = "secret"
    spec: SecretSpec


class Config(Base, frozen=True, kw_only=True):
    kind = "config"
    spec: ConfigSpec


class Cluster(Base, frozen=True, kw_only=True):
    """The one cluster object; `ca_key_pem` and tokens never leave the managers."""

    kind = "cluster"
    spec: SwarmSpec = SwarmSpec()
    ca_cert_pem: str = ""
    ca_key_pem: str = ""
    worker_token: str = ""
    manager_token: str = ""
    default_addr_pool: tuple[str, ...] = ("10.0.0.0/8",)
    subnet_size: int = 24
    data_path_port: int = VXLAN_PORT


Object = Union[Node, Service, Task, Network, Secret, Config, Cluster]
KINDS: dict[str, type[Base]] = {c.kind: c for c in (Node, Service, Task, Network, Secret, Config, Cluster)}
