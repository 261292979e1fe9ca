"""From the body of POST /containers/create to a standalone container's wish. Pure.

Owns what each member means and its checks, in Docker's words. Must not look anything up: names of networks become what
they are in the route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from overlace.agent.container import healthcheck_of, mount_of
from overlace.agent.standalone.records import BRIDGE, Dns, Joined, Restart, RestartName, Wish
from overlace.api.convert.create_request import (
    Binding,
    CreateRequest,
    EndpointConfig,
    HostConfig,
    RestartPolicy,
)
from overlace.manager.control.container_spec import check_healthcheck, check_hosts_and_dns, check_process
from overlace.manager.control.mount_spec import check_mounts
from overlace.model.errors import InvalidArgument, OverlaceError, Unimplemented
from overlace.model.logoptions import log_choice
from overlace.model.seccomp import check_profile
from overlace.model.specs import (
    BindOptions,
    ContainerSpec,
    DnsConfig,
    Driver,
    Mount,
    PortConfig,
    TmpfsOptions,
    VolumeOptions,
)
from overlace.runtime import base

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SECOND = 1_000_000_000
_MEMORY_STEP = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
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
    mode = network_mode(asked)
    spec = _spec(asked, host)
    _check(spec)
    swap = _swap(host)
    logs = log_choice(Driver(host.log_config.type, host.log_config.config) if host.log_config.type else None)
    security = _security(host.security_opt)
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
        hosts=_extra_hosts(host.extra_hosts),
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
    mounts += [_tmpfs(target, options) for target, options in host.tmpfs.items()]
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
        hosts=[f"{address} {name}" for name, address in _extra_hosts(host.extra_hosts)],
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


def _security(options: Sequence[str]) -> tuple[bool, str]:
    """(no new privileges, seccomp) of `--security-opt`."""
    no_new, seccomp = False, ""
    for option in options:
        key, separator, value = option.partition("=")
        if not separator:
            key, separator, value = option.partition(":")
        match key:
            case "no-new-privileges":
                if value not in ("", "true", "false"):
                    raise InvalidArgument(f'invalid --security-opt 2: "{option}"')
                no_new = value != "false"
            case "seccomp":
                if value not in ("unconfined", "builtin"):
                    check_profile(value.encode())
                seccomp = "" if value == "builtin" else value
            case "apparmor" if value in ("unconfined", "docker-default"):
                """Hosts load no profile: both are what is the case."""
            case "label" if value == "disable":
                """Containers have no SELinux label."""
            case _:
                raise Unimplemented(
                    f"HostConfig.SecurityOpt {option} is not supported: use no-new-privileges, seccomp=…, "
                    "apparmor=unconfined or label=disable"
                )
    return no_new, seccomp


def _extra_hosts(entries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`name:address` (Docker also takes `name=address`) as pairs. Raises InvalidArgument in its words."""
    pairs = []
    for entry in entries:
        name, separator, address = entry.partition("=") if "=" in entry else entry.partition(":")
        if not separator or not name:
            raise InvalidArgument(f'bad format for add-host: "{entry}"')
        if address == "host-gateway":
            raise Unimplemented(
                f"HostConfig.ExtraHosts {entry} is not supported: name the host's address instead of host-gateway"
            )
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            raise InvalidArgument(f'invalid IP address in add-host: "{address}"') from None
        pairs.append((name, address.strip("[]")))
    return tuple(pairs)


def plan_restart(policy: RestartPolicy, auto_remove: bool) -> Restart:
    """Raises InvalidArgument in Docker's words (moby api/types/container ValidateRestartPolicy)."""
    name = policy.name or "no"
    if name not in ("no", "always", "unless-stopped", "on-failure"):
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and name != "on-failure":
        raise InvalidArgument(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if auto_remove and name != "no":
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")
    restart: RestartName = name  # type: ignore[assignment]  # checked above
    return Restart(restart, policy.maximum_retry_count)


# -- mounts --------------------------------------------------------------------------------------------------


def parse_bind(text: str) -> Mount:
    """`source:target[:options]` or `target` as a mount; the source is made when it is not there (moby volume/mounts).

    Raises InvalidArgument in Docker's words.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount(type="volume", target=parts[0])
    source, target = parts[0], parts[1]
    read_only, no_copy, propagation = False, False, ""
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in ("ro", "rw"):
            read_only = option == "ro"
        elif option == "nocopy":
            no_copy = True
        elif option in _PROPAGATION:
            propagation = option
        elif option not in (
            "z",
            "Z",
            "consistent",
            "cached",
            "delegated",
            "default",
        ):  # no SELinux, no desktop
            raise InvalidArgument(f"invalid mode: {parts[2]}")
    if source.startswith("/"):
        if no_copy:
            raise InvalidArgument(f"invalid mode: {parts[2]}")
        options = BindOptions(propagation=propagation, create_mountpoint=True)
        return Mount(type="bind", source=source, target=target, read_only=read_only, bind_options=options)
    if propagation:
        raise InvalidArgument(f"invalid mode: {parts[2]}")
    return Mount(
        type="volume",
        source=source,
        target=target,
        read_only=read_only,
        volume_options=VolumeOptions(no_copy=no_copy),
    )


def _tmpfs(target: str, options: str) -> Mount:
    """`--tmpfs target:options`. Raises InvalidArgument, Unimplemented."""
    size, mode, read_only, run = 0, 0, False, False
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if key == "size":
            size = _size(value, f"{target}: size={value}")
        elif key == "mode" and re.fullmatch(r"[0-7]{1,4}", value):
            mode = int(value, 8)
        elif key in ("ro", "rw"):
            read_only = key == "ro"
        elif key in ("exec", "noexec"):
            run = key == "exec"
        elif key not in ("nosuid", "nodev"):
            raise Unimplemented(
                f"HostConfig.Tmpfs {target}:{option} is not supported: use size, mode, ro, rw, exec or noexec"
            )
    made = TmpfsOptions(size_bytes=size, mode=mode, options=[["exec"]] if run else [])
    return Mount(type="tmpfs", target=target, read_only=read_only, tmpfs_options=made)


def _size(text: str, where: str) -> int:
    match = re.fullmatch(r"(\d{1,18})([bkmgBKMG]?)[bB]?", text)
    if match is None:
        raise InvalidArgument(f"HostConfig.Tmpfs {where}: expected a size such as 64m")
    return int(match[1]) * _MEMORY_STEP[match[2].lower() or "b"]


# -- ports ---------------------------------------------------------------------------------------------------


def plan_ports(host: HostConfig, exposed: Iterable[str]) -> tuple[PortConfig, ...]:
    """`-p` and `-P` as ports of the host; number 0: one the host chooses."""
    ports: list[PortConfig] = []
    for inside, bindings in host.port_bindings.items():
        number, protocol = parse_port(inside)
        for binding in bindings or [Binding()]:
            if binding.host_ip not in ("", "0.0.0.0", "::"):
                raise Unimplemented(
                    f"HostConfig.PortBindings {binding.host_ip}:{binding.host_port}:{inside} is not supported: "
                    "a port is published on every address of the host; leave the address out"
                )
            if binding.host_ip == "::":
                continue  # beside 0.0.0.0, which says the same here
            first, _, last = binding.host_port.partition("-")
            if binding.host_port and not first.isdecimal():
                raise InvalidArgument(f"invalid host port '{binding.host_port}' for {inside}")
            if last and last != first:
                raise Unimplemented(
                    f"HostConfig.PortBindings {binding.host_port}:{inside} is not supported: a range of host ports for "
                    "one port; name one, or none to have one chosen"
                )
            ports.append(_port(protocol, number, int(first or 0)))
    if host.publish_all_ports:
        there = {(p.protocol, p.target_port) for p in ports}
        for text in exposed:
            number, protocol = parse_port(text)
            if (protocol, number) not in there:
                ports.append(_port(protocol, number, 0))
    return tuple(dict.fromkeys(ports))


def _port(protocol: str, target: int, published: int) -> PortConfig:
    return PortConfig(protocol=protocol, target_port=target, published_port=published, publish_mode="host")


def parse_port(text: str) -> tuple[int, str]:
    """`80/tcp` as (80, tcp). Raises InvalidArgument."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if not number.isdecimal() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f"invalid port specification: '{text}'; use PORT or PORT/tcp, /udp, /sctp")
    return int(number), protocol


def _shown(asked: CreateRequest) -> dict[str, dict[str, Any]]:
    """What `docker inspect` shows as asked, where the runtime's config does not have it."""
    host = asked.host_config
    return {
        "Config": {
            "AttachStdin": asked.attach_stdin,
            "AttachStdout": asked.attach_stdout,
            "AttachStderr": asked.attach_stderr,
            "StdinOnce": asked.stdin_once,
            "ExposedPorts": {_normal(p): {} for p in (*asked.exposed_ports, *host.port_bindings)},
            **({"StopTimeout": asked.stop_timeout} if asked.stop_timeout is not None else {}),
        },
        "HostConfig": {
            "Binds": list(host.binds) or None,
            "NetworkMode": host.network_mode if host.network_mode not in ("", "default") else "bridge",
            "PortBindings": {
                _normal(port): [
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


def _normal(port: str) -> str:
    number, protocol = parse_port(port)
    return f"{number}/{protocol}"
