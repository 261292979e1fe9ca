"""From the body of POST /containers/create to a standalone container's wish. Pure.

Owns what each member means and its checks, in Docker's words. Must not look anything up: names of networks become what
they are in the route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from overlace.agent.container import healthcheck_of, mount_of
from overlace.agent.standalone.records import BRIDGE, Dns, Joined, Wish
from overlace.api.convert.create_request import (
    Binding,
    CreateRequest,
    EndpointConfig,
    HostConfig,
)
from overlace.api.convert.run_options import (
    normal_port,
    parse_bind,
    parse_extra_hosts,
    parse_security,
    parse_tmpfs,
    plan_ports,
    plan_restart,
)
from overlace.manager.control.container_spec import check_healthcheck, check_hosts_and_dns, check_process
from overlace.manager.control.mount_spec import check_mounts
from overlace.model.errors import InvalidArgument, OverlaceError, Unimplemented
from overlace.model.logoptions import log_choice
from overlace.model.policy import check_container_labels
from overlace.model.specs import (
    ContainerSpec,
    DnsConfig,
    Driver,
    Mount,
    TmpfsOptions,
)
from overlace.model.traffic import check_container_traffic
from overlace.runtime import base

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SECOND = 1_000_000_000
DEFAULT_SHM = 64 << 20  # bytes, moby daemon/config DefaultShmSize


def check_name(name: str) -> str:
    """Without its slash. Raises InvalidArgument in Docker's words."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name.removeprefix("/")


def plan_wish(
    asked: CreateRequest, id: str, name: str, windows_host: bool, host_hostname: str, exposed: Iterable[str]
) -> Wish:
    """Everything but its networks. `exposed`: what the image exposes, for --publish-all.

    Raises InvalidArgument, Unimplemented.
    """
    host = asked.host_config
    if not asked.image:
        raise InvalidArgument("no image specified: name one")
    check_limits(host)
    check_container_labels(asked.labels)
    check_container_traffic(asked.labels)
    mode = network_mode(asked)
    spec = _spec(asked, host)
    _check(spec)
    swap = _swap(host)
    logs = log_choice(Driver(host.log_config.type, host.log_config.config) if host.log_config.type else None)
    security = parse_security(host.security_opt)
    config = base.ContainerConfig(
        id=id,
        name=name,
        image=asked.image,
        netns="",
        entrypoint=None
        if asked.entrypoint is None
        else tuple(asked.entrypoint if asked.entrypoint != [""] else ()),
        args=None if asked.cmd is None else tuple(asked.cmd),
        env=tuple(asked.env),
        workdir=asked.working_dir or None,
        user=asked.user or None,
        groups=tuple(host.group_add),
        hostname=asked.hostname or (host_hostname if mode == "host" else id[:12]),
        labels=dict(asked.labels),
        mounts=tuple(mount_of(m) for m in spec.mounts),
        hosts=parse_extra_hosts(host.extra_hosts),
        tty=asked.tty,
        open_stdin=asked.open_stdin,
        stdin_once=asked.stdin_once,
        read_only=host.readonly_rootfs,
        init=bool(host.init),
        stop_signal=asked.stop_signal or None,
        stop_grace=_grace(asked.stop_timeout),
        healthcheck=None if asked.healthcheck is None else healthcheck_of(asked.healthcheck),
        nano_cpus=_nano_cpus(host),
        memory=host.memory,
        pids=max(host.pids_limit or 0, 0),
        cap_add=tuple(host.cap_add),
        cap_drop=tuple(host.cap_drop),
        sysctls=dict(host.sysctls),
        ulimits=tuple(base.Ulimit(u.name, u.soft, u.hard) for u in host.ulimits),
        oom_score_adj=host.oom_score_adj,
        no_new_privileges=security[0],
        seccomp=security[1],
        swap=swap,
        swappiness=-1 if host.memory_swappiness is None else host.memory_swappiness,
        log_driver=logs.driver,
        log_max_size=logs.max_size,
        log_max_files=logs.max_files,
    )
    if windows_host and mode == "host":
        raise InvalidArgument(
            "HostConfig.NetworkMode host: a Windows host has no network host; use none or leave it out"
        )
    console = tuple(host.console_size) if asked.tty and any(host.console_size) else None
    return Wish(
        config=config,
        mode=mode,  # type: ignore[arg-type]  # one of the three
        ports=() if mode else plan_ports(host, exposed),
        dns=Dns(tuple(host.dns), tuple(host.dns_search), tuple(host.dns_options)),
        restart=plan_restart(host.restart_policy, host.auto_remove),
        auto_remove=host.auto_remove,
        console=None if console is None or len(console) != 2 else (console[0], console[1]),
        shown=_shown(asked),
    )


def plan_joined(name: str, config: EndpointConfig) -> Joined:
    """One member of EndpointsConfig. Raises Unimplemented, InvalidArgument naming what cannot be."""
    where = f"EndpointsConfig.{name}"
    for field, value in (
        ("Links", config.links),
        ("MacAddress", config.mac_address),
        ("DriverOpts", config.driver_opts),
        ("GwPriority", config.gw_priority),
    ):
        if value:
            raise Unimplemented(f"{where}.{field} {value} is not supported: leave it out")
    ipam = config.ipam_config or {}
    addresses: list[str] = []
    for field, value in ipam.items():
        if not value:
            continue
        if field not in ("IPv4Address", "IPv6Address"):
            raise Unimplemented(f"{where}.IPAMConfig.{field} {value} is not supported: use IPv4Address")
        try:
            parsed = ipaddress.ip_address(str(value))
        except ValueError:
            parsed = None
        if parsed is None or f"IPv{parsed.version}Address" != field:
            raise InvalidArgument(f"invalid {field[:4]} address: {value}")
        addresses.append(str(parsed))
    if name != BRIDGE:
        return Joined(name=name, target=name, aliases=tuple(config.aliases), addresses=tuple(addresses))
    if config.aliases:
        raise InvalidArgument("network-scoped aliases are only supported for user-defined networks")
    if addresses:
        raise InvalidArgument(
            "invalid config for network bridge: invalid endpoint settings:\nuser specified IP address is supported on "
            "user defined networks only"
        )
    return Joined(name=BRIDGE)


def network_mode(asked: CreateRequest) -> str:
    """`host`, `none`, or empty for a network that is named (or bridge)."""
    mode = asked.host_config.network_mode
    if asked.network_disabled:
        return "none"
    if mode.startswith("container:"):
        raise Unimplemented(f"HostConfig.NetworkMode {mode} is not supported: put both on one network")
    return mode if mode in ("host", "none") else ""


def _spec(asked: CreateRequest, host: HostConfig) -> ContainerSpec:
    """The same as a service's container would have it, for the checks both share."""
    mounts = [*host.mounts, *(parse_bind(text) for text in host.binds)]
    taken = {m.target for m in mounts}
    mounts += [Mount(type="volume", target=target) for target in asked.volumes if target not in taken]
    mounts += [parse_tmpfs(target, options) for target, options in host.tmpfs.items()]
    if host.shm_size not in (0, DEFAULT_SHM):
        mounts.append(
            Mount(
                type="tmpfs",
                target="/dev/shm",
                tmpfs_options=TmpfsOptions(size_bytes=host.shm_size, mode=0o1777),
            )
        )
    return ContainerSpec(
        image=asked.image,
        env=asked.env,
        dir=asked.working_dir,
        user=asked.user,
        stop_signal=asked.stop_signal,
        mounts=mounts,
        healthcheck=asked.healthcheck,
        hosts=[f"{address} {name}" for name, address in parse_extra_hosts(host.extra_hosts)],
        dns_config=DnsConfig(nameservers=host.dns, search=host.dns_search, options=host.dns_options),
        capability_add=host.cap_add,
        capability_drop=host.cap_drop,
        ulimits=host.ulimits,
        oom_score_adj=host.oom_score_adj,
    )


def _check(spec: ContainerSpec) -> None:
    """The rules services have, in the daemon's words instead of the swarm's."""
    try:
        check_mounts(spec.mounts, spec.mounts)
        check_healthcheck(spec.healthcheck)
        check_process(spec)
        check_hosts_and_dns(spec)
    except OverlaceError as error:
        if not error.swarm:
            raise
        raise type(error)(error.message.removeprefix("ContainerSpec: ")) from None


def check_limits(host: HostConfig) -> None:
    """Raises InvalidArgument in Docker's words (moby daemon/daemon_unix.go verifyPlatformContainerResources)."""
    if host.memory and host.memory < 6 << 20:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if host.memory_swap > 0 and not host.memory:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < host.memory_swap < host.memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.memory_swappiness is not None and not -1 <= host.memory_swappiness <= 100:
        raise InvalidArgument(
            f"Invalid value: {host.memory_swappiness}, valid memory swappiness range is 0-100"
        )
    if host.nano_cpus and (host.cpu_period or host.cpu_quota):
        field = "period" if host.cpu_period else "quota"
        raise InvalidArgument(f"Conflicting options: Nano CPUs and CPU {field.title()} cannot both be set")
    if host.nano_cpus < 0 or 0 < host.nano_cpus < 10_000_000:
        raise InvalidArgument("Range of CPUs is from 0.01 to what this host has: NanoCpus is too small")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if host.cpu_quota and host.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")


def _nano_cpus(host: HostConfig) -> int:
    if host.cpu_quota:
        return host.cpu_quota * _SECOND // (host.cpu_period or 100_000)
    return host.nano_cpus


def _swap(host: HostConfig) -> int | None:
    """Docker counts memory and swap together; ours is the swap alone."""
    if host.memory_swap < 0:
        return -1
    return host.memory_swap - host.memory if host.memory_swap else None


def _grace(seconds: int | None) -> int:
    if seconds is None:
        return 10 * _SECOND
    return seconds * _SECOND if seconds >= 0 else 10**18


def _shown(asked: CreateRequest) -> dict[str, dict[str, Any]]:
    """What `docker inspect` shows as asked, where the runtime's config does not have it."""
    host = asked.host_config
    return {
        "Config": {
            "AttachStdin": asked.attach_stdin,
            "AttachStdout": asked.attach_stdout,
            "AttachStderr": asked.attach_stderr,
            "StdinOnce": asked.stdin_once,
            "ExposedPorts": {normal_port(p): {} for p in (*asked.exposed_ports, *host.port_bindings)},
            **({"StopTimeout": asked.stop_timeout} if asked.stop_timeout is not None else {}),
        },
        "HostConfig": {
            "Binds": list(host.binds) or None,
            "NetworkMode": host.network_mode if host.network_mode not in ("", "default") else "bridge",
            "PortBindings": {
                normal_port(port): [
                    {"HostIp": b.host_ip, "HostPort": b.host_port} for b in bindings or [Binding()]
                ]
                for port, bindings in host.port_bindings.items()
            },
            "AutoRemove": host.auto_remove,
            "PublishAllPorts": host.publish_all_ports,
            "ConsoleSize": list(host.console_size) or [0, 0],
            "Dns": list(host.dns),
            "DnsOptions": list(host.dns_options),
            "DnsSearch": list(host.dns_search),
            "ExtraHosts": list(host.extra_hosts) or None,
            "SecurityOpt": list(host.security_opt) or None,
            "Tmpfs": dict(host.tmpfs),
            "ShmSize": host.shm_size or DEFAULT_SHM,
            "CpuPeriod": host.cpu_period,
            "CpuQuota": host.cpu_quota,
            "NanoCpus": host.nano_cpus,
            "MemorySwap": host.memory_swap or 2 * host.memory,
            "MemorySwappiness": host.memory_swappiness if (host.memory_swappiness or -1) >= 0 else None,
            "Mounts": msgspec.to_builtins(host.mounts) or None,
            "Init": host.init,
        },
    }
