"""What users ask for: the Engine API's swarm specs, field for field (moby api/types/swarm, API 1.51).

Owns the shape and JSON names of specs; durations are integer nanoseconds as on the wire. Must not validate beyond
types (manager/control does) nor know objects the manager makes of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

_ACRONYMS = {
    "id": "ID", "url": "URL", "tty": "TTY", "uid": "UID", "gid": "GID", "dns": "DNS", "cpus": "CPUs", "ca": "CA",
    "csi": "CSI", "tls": "TLS", "ips": "IPs", "ip": "IP", "os": "OS", "ipam": "IPAM", "ids": "IDs",
}  # fmt: skip


def docker_name(field: str) -> str:
    """snake_case -> Docker's PascalCase with its acronyms, e.g. `nano_cpus` -> `NanoCPUs`."""
    return "".join(_ACRONYMS.get(part, part.capitalize()) for part in field.split("_"))


class Doc(msgspec.Struct, frozen=True, rename=docker_name, omit_defaults=True):
    """Base of every API document: immutable, Docker's member names, defaults omitted as Go's omitempty does."""


Labels = dict[str, str]


def _labels() -> Labels:
    return {}


# -- container ---------------------------------------------------------------------------------------------------


class FileTarget(Doc, frozen=True):
    name: str = ""
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


class SecretReference(Doc, frozen=True):
    secret_id: str = ""
    secret_name: str = ""
    file: FileTarget | None = None


class ConfigReference(Doc, frozen=True):
    config_id: str = ""
    config_name: str = ""
    file: FileTarget | None = None
    runtime: dict[str, Any] | None = None


class Healthcheck(Doc, frozen=True):
    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Driver(Doc, frozen=True):
    name: str = ""
    options: dict[str, str] = msgspec.field(default_factory=dict)


class BindOptions(Doc, frozen=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeOptions(Doc, frozen=True):
    no_copy: bool = False
    labels: Labels = msgspec.field(default_factory=_labels)
    driver_config: Driver | None = None
    subpath: str = ""


class TmpfsOptions(Doc, frozen=True):
    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] = []


class Mount(Doc, frozen=True):
    type: str = "bind"
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: dict[str, Any] | None = None
    cluster_options: dict[str, Any] | None = None


class DnsConfig(Doc, frozen=True):
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []


class Ulimit(Doc, frozen=True):
    name: str = ""
    soft: int = 0
    hard: int = 0


class ContainerSpec(Doc, frozen=True):
    image: str = ""
    labels: Labels = msgspec.field(default_factory=_labels)
    command: list[str] = []
    args: list[str] = []
    hostname: str = ""
    env: list[str] = []
    dir: str = ""
    user: str = ""
    groups: list[str] = []
    privileges: dict[str, Any] | None = None
    init: bool | None = None
    stop_signal: str = ""
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: list[Mount] = []
    stop_grace_period: int | None = None
    healthcheck: Healthcheck | None = None
    hosts: list[str] = []  # "IP name [alias…]", /etc/hosts order
    dns_config: DnsConfig | None = msgspec.field(default=None, name="DNSConfig")
    secrets: list[SecretReference] = []
    configs: list[ConfigReference] = []
    isolation: str = ""
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    capability_add: list[str] = []
    capability_drop: list[str] = []
    ulimits: list[Ulimit] = []
    oom_score_adj: int = 0


# -- task --------------------------------------------------------------------------------------------------------


class Limits(Doc, frozen=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0


class Reservations(Doc, frozen=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: list[dict[str, Any]] = []


class Resources(Doc, frozen=True):
    limits: Limits | None = None
    reservations: Reservations | None = None
    swap_bytes: int | None = (
        None  # besides the memory limit; -1: all there is (API 1.52, taken from any client)
    )
    memory_swappiness: int | None = None  # 0 to 100, -1: the host's own (API 1.52)


class RestartPolicy(Doc, frozen=True):
    condition: str = "any"  # none | on-failure | any
    delay: int | None = None  # default 5 s
    max_attempts: int | None = None
    window: int | None = None


class SpreadOver(Doc, frozen=True):
    spread_descriptor: str = ""


class PlacementPreference(Doc, frozen=True):
    spread: SpreadOver | None = None


class Platform(Doc, frozen=True):
    """A platform a service's image offers; `os_version` is ours (docker CLI does not send it), found by the manager."""

    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="OSVersion")


class Placement(Doc, frozen=True):
    constraints: list[str] = []
    preferences: list[PlacementPreference] = []
    max_replicas: int = 0
    platforms: list[Platform] = []


# Docker's predefined networks, which every host has of its own: its NAT network, its own stack, nothing but loopback.
HOST_NETWORKS = ("bridge", "host", "none")


class NetworkAttachmentConfig(Doc, frozen=True):
    target: str = ""  # network id or name
    aliases: list[str] = []
    driver_opts: dict[str, str] = msgspec.field(default_factory=dict)


def host_network(networks: list[NetworkAttachmentConfig]) -> str:
    """The predefined network a task is on instead of the swarm's; a task on no network at all is on `bridge`."""
    return next((n.target for n in networks if n.target in HOST_NETWORKS), "" if networks else "bridge")


class TaskSpec(Doc, frozen=True):
    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, Any] | None = None
    network_attachment_spec: dict[str, Any] | None = None
    resources: Resources | None = None
    restart_policy: RestartPolicy | None = None
    placement: Placement | None = None
    networks: list[NetworkAttachmentConfig] = []
    log_driver: Driver | None = None
    force_update: int = 0
    runtime: str = ""


# -- service -----------------------------------------------------------------------------------------------------


class ReplicatedService(Doc, frozen=True):
    replicas: int | None = None


class ReplicatedJob(Doc, frozen=True):
    max_concurrent: int | None = None
    total_completions: int | None = None


class GlobalService(Doc, frozen=True):
    pass


class GlobalJob(Doc, frozen=True):
    pass


class ServiceMode(Doc, frozen=True):
    replicated: ReplicatedService | None = None
    global_: GlobalService | None = msgspec.field(default=None, name="Global")
    replicated_job: ReplicatedJob | None = None
    global_job: GlobalJob | None = None


class UpdateConfig(Doc, frozen=True):
    parallelism: int = 0
    delay: int = 0
    failure_action: str = ""
    monitor: int | None = None
    max_failure_ratio: float = 0.0
    order: str = ""


class PortConfig(Doc, frozen=True):
    name: str = ""
    protocol: str = "tcp"  # tcp | udp | sctp
    target_port: int = 0
    published_port: int = 0
    publish_mode: str = "ingress"  # ingress | host
    host_ip: str = ""  # the one address it is published at, of a container outside of services; "": every one


class EndpointSpec(Doc, frozen=True):
    mode: str = ""  # vip (default) | dnsrr
    ports: list[PortConfig] = []


class ServiceSpec(Doc, frozen=True):
    name: str = ""
    labels: Labels = msgspec.field(default_factory=_labels)
    task_template: TaskSpec = TaskSpec()
    mode: ServiceMode = ServiceMode()
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: list[NetworkAttachmentConfig] = []  # the older place; TaskTemplate.Networks wins
    endpoint_spec: EndpointSpec | None = None


# -- the rest ----------------------------------------------------------------------------------------------------


class NodeSpec(Doc, frozen=True):
    name: str = ""
    labels: Labels = msgspec.field(default_factory=_labels)
    role: str = "worker"  # worker | manager
    availability: str = "active"  # active | pause | drain


class SecretSpec(Doc, frozen=True):
    name: str = ""
    labels: Labels = msgspec.field(default_factory=_labels)
    data: bytes = b""  # base64 in JSON
    driver: Driver | None = None
    templating: Driver | None = None


class ConfigSpec(Doc, frozen=True):
    name: str = ""
    labels: Labels = msgspec.field(default_factory=_labels)
    data: bytes = b""
    templating: Driver | None = None


class IpamConfig(Doc, frozen=True):
    subnet: str = ""
    range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = msgspec.field(default_factory=dict)


class Ipam(Doc, frozen=True):
    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IpamConfig] = []


VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
MTU_OPTION = "com.docker.network.driver.mtu"
MULTICAST_OPTION = "overlace.multicast"  # true: broadcast and multicast are carried
MULTICAST_RATE_OPTION = "overlace.multicast.rate"  # packets per second that one host may send
HOST_ACCESS_OPTION = "overlace.host-access"  # true: hosts' own processes reach its services and containers
DEFAULT_MULTICAST_RATE, MAX_MULTICAST_RATE = 1000, 1_000_000
# RFC 791: what every host must take whole; an overlay adds 50 bytes of headers to an IP packet of at most 65535.
MIN_MTU, MAX_MTU = 576, 65485


class NetworkSpec(Doc, frozen=True):
    """POST /networks/create as far as swarm networks go."""

    name: str = ""
    driver: str = "overlay"
    labels: Labels = msgspec.field(default_factory=_labels)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: Ipam = msgspec.field(default=Ipam(), name="IPAM")
    scope: str = "swarm"
    config_only: bool = False  # settings with a name, for others to be made from
    config_from: str = ""  # name of the one this was made from


class OrchestrationConfig(Doc, frozen=True):
    task_history_retention_limit: int = 5


class DispatcherConfig(Doc, frozen=True):
    heartbeat_period: int = 5_000_000_000


class CAConfig(Doc, frozen=True):
    node_cert_expiry: int = 7_776_000_000_000_000  # 90 days
    external_cas: list[dict[str, Any]] = msgspec.field(default_factory=list, name="ExternalCAs")
    signing_ca_cert: str = ""
    signing_ca_key: str = ""
    force_rotate: int = 0


class EncryptionConfig(Doc, frozen=True):
    auto_lock_managers: bool = False


class TaskDefaults(Doc, frozen=True):
    log_driver: Driver | None = None


class RaftConfig(Doc, frozen=True):
    """Accepted and reported as clients expect it; there is no raft here (docs/adr/0002)."""

    snapshot_interval: int = 10000
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 500
    election_tick: int = 10
    heartbeat_tick: int = 1


class SwarmSpec(Doc, frozen=True):
    name: str = "default"
    labels: Labels = msgspec.field(default_factory=_labels)
    orchestration: OrchestrationConfig = OrchestrationConfig()
    raft: RaftConfig = RaftConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ca_config: CAConfig = CAConfig()
    task_defaults: TaskDefaults = TaskDefaults()
    encryption_config: EncryptionConfig = EncryptionConfig()
