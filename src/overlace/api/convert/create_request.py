"""The body of POST /containers/create, and which of its members no host honours.

Owns the shapes (moby api/types/container config.go, hostconfig.go, API 1.51) and the sentence for each member that is
refused. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from overlace.model.errors import Unimplemented
from overlace.model.specs import Doc, Healthcheck, Mount, Ulimit


class LogConfig(Doc, frozen=True):
    """`--log-driver` and `--log-opt`."""

    type: str = ""
    config: dict[str, str] = msgspec.field(default_factory=dict)


class RestartPolicy(Doc, frozen=True):
    """`--restart`; an empty name is `no`."""

    name: str = ""
    maximum_retry_count: int = 0


class Binding(Doc, frozen=True):
    """One `-p`: where on the host. Empty: on every address; a port that is chosen."""

    host_ip: str = msgspec.field(default="", name="HostIp")
    host_port: str = ""


class HostConfig(Doc, frozen=True):
    """What is honoured has a type; all else is in `UNSUPPORTED`."""

    binds: list[str] = msgspec.field(default_factory=list)
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[Binding]] = msgspec.field(default_factory=dict)
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    console_size: list[int] = msgspec.field(default_factory=list)
    cap_add: list[str] = msgspec.field(default_factory=list)
    cap_drop: list[str] = msgspec.field(default_factory=list)
    dns: list[str] = msgspec.field(default_factory=list, name="Dns")
    dns_options: list[str] = msgspec.field(default_factory=list, name="DnsOptions")
    dns_search: list[str] = msgspec.field(default_factory=list, name="DnsSearch")
    extra_hosts: list[str] = msgspec.field(default_factory=list)
    group_add: list[str] = msgspec.field(default_factory=list)
    oom_score_adj: int = 0
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] = msgspec.field(default_factory=list)
    tmpfs: dict[str, str] = msgspec.field(default_factory=dict)
    shm_size: int = 0
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    memory: int = 0
    nano_cpus: int = msgspec.field(default=0, name="NanoCpus")
    cpu_period: int = 0
    cpu_quota: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] = msgspec.field(default_factory=list)
    mounts: list[Mount] = msgspec.field(default_factory=list)
    init: bool | None = None


class EndpointConfig(Doc, frozen=True):
    """What is wished of one network; also in POST /networks/{id}/connect."""

    ipam_config: dict[str, Any] | None = msgspec.field(default=None, name="IPAMConfig")
    links: list[str] = msgspec.field(default_factory=list)
    aliases: list[str] = msgspec.field(default_factory=list)
    mac_address: str = ""
    driver_opts: dict[str, str] = msgspec.field(default_factory=dict)
    network_id: str = msgspec.field(default="", name="NetworkID")
    gw_priority: int = 0


class NetworkingConfig(Doc, frozen=True):
    """The networks by name, with `--network` given more than once."""

    endpoints_config: dict[str, EndpointConfig] = msgspec.field(default_factory=dict)


class CreateRequest(Doc, frozen=True):
    """The body; what is honoured has a type, all else is in `CONFIG_UNSUPPORTED`."""

    hostname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    tty: bool = msgspec.field(default=False, name="Tty")
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] = msgspec.field(default_factory=list)
    cmd: list[str] | None = None
    healthcheck: Healthcheck | None = None
    image: str = ""
    volumes: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout: int | None = None
    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()


# What no host of ours does, with the values that ask for nothing: (member, those values, what to do instead).
CONFIG_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("Domainname", ("",), "put the domain into --hostname"),
    ("MacAddress", ("",), "addresses on our networks have MAC addresses that follow from them"),
    ("OnBuild", ([],), "images are built elsewhere"),
    ("Shell", ([],), "it belongs to building images"),
)
HOST_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("VolumeDriver", ("", "local"), "there are no volume plugins; use local"),
    ("VolumesFrom", ([],), "name the volumes with -v"),
    ("Annotations", ({},), "use labels"),
    ("CgroupnsMode", ("",), "containers have the host's default"),
    ("IpcMode", ("", "private"), "each container has its own"),
    ("Cgroup", ("",), "each container has its own"),
    ("Links", ([],), "use a network, where containers reach each other by name"),
    ("PidMode", ("",), "each container has its own processes; docker exec or docker top look at them"),
    ("Privileged", (False,), "name what it needs with --cap-add"),
    ("StorageOpt", ({},), "writable layers have no quota"),
    ("UTSMode", ("",), "each container has its own hostname; set it with --hostname"),
    ("UsernsMode", ("", "host"), "user ids are not mapped"),
    ("Runtime", ("", "runc"), "the daemon chooses runc or crun"),
    ("Isolation", ("", "default", "process"), "there are no Hyper-V containers"),
    ("CpuShares", (0,), "limit it with --cpus"),
    ("CgroupParent", ("",), "the daemon has a cgroup of its own for its containers"),
    ("BlkioWeight", (0,), "disks are not shared out"),
    ("BlkioWeightDevice", ([],), "disks are not shared out"),
    ("BlkioDeviceReadBps", ([],), "disks are not limited"),
    ("BlkioDeviceWriteBps", ([],), "disks are not limited"),
    ("BlkioDeviceReadIOps", ([],), "disks are not limited"),
    ("BlkioDeviceWriteIOps", ([],), "disks are not limited"),
    ("CpuRealtimePeriod", (0,), "limit it with --cpus"),
    ("CpuRealtimeRuntime", (0,), "limit it with --cpus"),
    ("CpusetCpus", ("",), "limit it with --cpus"),
    ("CpusetMems", ("",), "memory nodes are the host's to choose"),
    ("Devices", ([],), "containers get no devices of the host"),
    ("DeviceCgroupRules", ([],), "containers get no devices of the host"),
    ("DeviceRequests", ([],), "containers get no devices of the host"),
    ("MemoryReservation", (0,), "use --memory"),
    ("OomKillDisable", (False,), "a container over its memory limit is ended"),
    ("KernelMemory", (0,), "use --memory"),
    ("KernelMemoryTCP", (0,), "use --memory"),
    ("CpuCount", (0,), "use --cpus"),
    ("CpuPercent", (0,), "use --cpus"),
    ("IOMaximumIOps", (0,), "disks are not limited"),
    ("IOMaximumBandwidth", (0,), "disks are not limited"),
    ("MaskedPaths", ([],), "what is masked in /proc and /sys is the same for all containers"),
    ("ReadonlyPaths", ([],), "what is read-only in /proc and /sys is the same for all containers"),
)
# Members without an effect in Docker's daemon either, or whose only value is what is the case here.
_HARMLESS = frozenset(("argsescaped", "containeridfile"))


def check_members(document: Mapping[str, Any]) -> None:
    """Every member of the body is known and honoured, or asks for nothing. Raises Unimplemented naming the first that is
    not. `document`: as sent."""
    config = {k: v for k, v in document.items() if k.lower() not in ("hostconfig", "networkingconfig")}
    _check_group("Config", config, CreateRequest, CONFIG_UNSUPPORTED)
    host = next((v for k, v in document.items() if k.lower() == "hostconfig"), None)
    if isinstance(host, dict):
        _check_group("HostConfig", host, HostConfig, HOST_UNSUPPORTED)


def _check_group(
    group: str,
    given: Mapping[str, Any],
    honoured: type[Doc],
    unsupported: Sequence[tuple[str, tuple[Any, ...], str]],
) -> None:
    known = {f.encode_name.lower() for f in msgspec.structs.fields(honoured)}
    refused = {name.lower(): (name, nothing, why) for name, nothing, why in unsupported}
    for member, value in given.items():
        key = member.lower()
        if key in known or key in _HARMLESS or value is None:
            continue
        if key not in refused:
            if value in ("", 0, False, [], {}):
                continue
            raise Unimplemented(f"{group}.{member} is not known here: leave it out")
        name, nothing, why = refused[key]
        if value not in nothing and not (value in ("", 0, False, [], {}) and type(value) is type(nothing[0])):
            shown = msgspec.json.encode(value).decode()
            raise Unimplemented(f"{group}.{name} {shown[:80]} is not supported: {why}")
