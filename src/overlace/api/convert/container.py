"""Containers as `docker ps` and `docker inspect` expect them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from overlace.api.backend import ContainerAddress
from overlace.api.codec import ZERO_TIME, rfc3339
from overlace.api.convert.common import Json
from overlace.model.logoptions import size_text
from overlace.model.specs import HOST_NETWORKS, PortConfig
from overlace.runtime.base import Container, ContainerConfig, Mount

_SECOND = 1_000_000_000
ANYWHERE, ANYWHERE6 = "0.0.0.0", "::"  # a published port answers on every address of the host


def human_duration(ns: int) -> str:
    """docker/go-units HumanDuration, which `docker ps` has in its STATUS column."""
    seconds = max(ns, 0) // _SECOND
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, unit, size in (
        (48, "hours", 1),
        (24 * 14, "days", 24),
        (24 * 60, "weeks", 168),
        (17520, "months", 720),
    ):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{seconds // 31_536_000} years"


def status_text(found: Container, now: int) -> str:
    """`Up 3 seconds (healthy)`, `Exited (137) 2 minutes ago`, `Created`."""
    if found.status == "running":
        text = f"Up {human_duration(now - found.started_at)}"
        if found.health:
            text += " (health: starting)" if found.health == "starting" else f" ({found.health})"
        return text
    if found.status == "created":
        return "Created"
    if found.status == "dead":
        return "Dead"
    return f"Exited ({found.exit_code}) {human_duration(now - found.finished_at)} ago"


def exposed_ports(image_config: Json, ports: Sequence[PortConfig]) -> list[str]:
    """`80/tcp` of what the image exposes and of what the host publishes, by number."""
    exposed = image_config.get("ExposedPorts")
    names = {p if "/" in p else f"{p}/tcp" for p in exposed} if isinstance(exposed, dict) else set()
    names |= {f"{p.target_port}/{p.protocol}" for p in ports}
    return sorted(names, key=lambda name: (len(name.partition("/")[0]), name))


def _port_list(
    found: Container, ports: Sequence[PortConfig], image_config: Json, addresses: Sequence[ContainerAddress]
) -> list[Json]:
    """The PORTS column: nothing for what does not run, as in Docker, IPv6 where it leads to the container."""
    if found.status != "running":
        return []
    anywhere = (ANYWHERE, ANYWHERE6) if any(a.ports6 for a in addresses) else (ANYWHERE,)
    shown: list[Json] = []
    for name in exposed_ports(image_config, ports):
        number, _, protocol = name.partition("/")
        private: Json = {"PrivatePort": int(number), "Type": protocol}
        public = [(p.published_port, p.host_ip) for p in ports if name == f"{p.target_port}/{p.protocol}"]
        shown += [
            {"IP": ip, **private, "PublicPort": port}
            for port, host_ip in sorted(public)
            for ip in ((host_ip,) if host_ip else anywhere)
        ] or [private]
    return shown


def _port_map(
    found: Container, ports: Sequence[PortConfig], image_config: Json, addresses: Sequence[ContainerAddress]
) -> Json:
    """The same for `docker inspect`: bindings by port, None for one that is only exposed."""
    shown: Json = {}
    for port in _port_list(found, ports, image_config, addresses):
        bindings = shown.setdefault(f"{port['PrivatePort']}/{port['Type']}", None)
        if "PublicPort" in port:
            binding = {"HostIp": port["IP"], "HostPort": str(port["PublicPort"])}
            shown[f"{port['PrivatePort']}/{port['Type']}"] = [*(bindings or ()), binding]
    return shown


def summary(
    found: Container,
    addresses: Sequence[ContainerAddress],
    now: int = 0,
    ports: Sequence[PortConfig] = (),
    image_config: Json | None = None,
) -> Json:
    """One line of `docker ps`; `image_config` says which ports the image exposes."""
    config = found.config
    return {
        "Id": config.id,
        "Names": [f"/{config.name}"],
        "Image": config.image,
        "ImageID": found.image_id,
        "Command": " ".join(_quote(word) for word in found.argv),
        "Created": found.created_at // _SECOND,
        "Ports": _port_list(found, ports, image_config or {}, addresses),
        "Labels": dict(config.labels),
        "State": found.status,
        "Status": status_text(found, now),
        "HostConfig": {"NetworkMode": addresses[0].network if addresses else "none"},
        "NetworkSettings": {"Networks": networks(config, addresses)},
        "Mounts": _mount_points(found),
    }


def _quote(word: str) -> str:
    return (
        word
        if word and not any(c.isspace() or c in "'\"" for c in word)
        else "'" + word.replace("'", "'\\''") + "'"
    )


def _split(address: str) -> tuple[str, int]:
    """(address, prefix length) of `10.0.1.2/24`; ("", 0) of nothing."""
    if not address:
        return "", 0
    interface = ipaddress.ip_interface(address)
    return str(interface.ip), interface.network.prefixlen


def _dns_names(config: ContainerConfig, place: ContainerAddress) -> list[str] | None:
    """What others on the network find it by (moby daemon/container_operations.go, buildEndpointDNSNames)."""
    if not place.address or place.network in HOST_NETWORKS:
        return None
    return list(dict.fromkeys(n for n in (config.name, *place.aliases, config.id[:12], config.hostname) if n))


def networks(config: ContainerConfig, addresses: Sequence[ContainerAddress]) -> Json:
    shown = {}
    for a in addresses:
        ip, length = _split(a.address)
        ip6, length6 = _split(a.address6)
        asked = {"IPv4Address": ip} if ip else None
        if asked is not None and ip6:
            asked["IPv6Address"] = ip6
        shown[a.network] = {
            "IPAMConfig": asked,
            "Links": None,
            "Aliases": list(a.aliases) or None,
            "MacAddress": a.mac,
            "DriverOpts": None,
            "GwPriority": 0,
            "NetworkID": a.network_id,
            "EndpointID": a.endpoint_id,
            "Gateway": a.gateway,
            "IPAddress": ip,
            "IPPrefixLen": length,
            "IPv6Gateway": a.gateway6,
            "GlobalIPv6Address": ip6,
            "GlobalIPv6PrefixLen": length6,
            "DNSNames": _dns_names(config, a),
        }
    return shown


def _mount_points(found: Container) -> list[Json]:
    """What is mounted: binds and tmpfs as asked for, volumes as they were made (those the image declares too)."""
    shown = [
        {
            "Type": mount.type,
            "Source": mount.source,
            "Destination": mount.target,
            "Mode": "",
            "RW": not mount.read_only,
            "Propagation": mount.propagation if mount.type == "bind" else "",
        }
        for mount in found.config.mounts
        if mount.type != "volume"
    ]
    return shown + [
        {
            "Type": "volume",
            "Name": volume.name,
            "Source": volume.path,
            "Destination": volume.target,
            "Driver": "local",
            "Mode": "z",
            "RW": not volume.read_only,
            "Propagation": "",
        }
        for volume in found.volumes
    ]


def inspect(
    found: Container,
    addresses: Sequence[ContainerAddress],
    os: str,
    image_config: Json,
    ports: Sequence[PortConfig] = (),
) -> Json:
    """`image_config` fills what the container's own config leaves to the image."""
    config = found.config
    argv = found.argv
    bridge = networks(config, addresses).get("bridge", {})  # what older clients read beside the networks
    return {
        "Id": config.id,
        "Created": rfc3339(found.created_at),
        "Path": argv[0] if argv else "",
        "Args": list(argv[1:]),
        "State": _state(found),
        "Image": found.image_id,
        "ResolvConfPath": found.host_files.resolv_conf,
        "HostnamePath": found.host_files.hostname,
        "HostsPath": found.host_files.hosts,
        "LogPath": found.host_files.log,
        "Name": f"/{config.name}",
        "RestartCount": 0,
        "Driver": "overlayfs",
        "Platform": os,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": _host_config(config, addresses, ports),
        "GraphDriver": {"Name": "overlayfs", "Data": None},
        "Mounts": _mount_points(found),
        "Config": _config(config, image_config, ports),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": "",
            "SandboxKey": config.netns if config.netns.startswith("/") else "",
            "Ports": _port_map(found, ports, image_config, addresses),
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            "EndpointID": bridge.get("EndpointID", ""),
            "Gateway": bridge.get("Gateway", ""),
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "IPAddress": bridge.get("IPAddress", ""),
            "IPPrefixLen": bridge.get("IPPrefixLen", 0),
            "IPv6Gateway": "",
            "MacAddress": bridge.get("MacAddress", ""),
            "Networks": networks(config, addresses),
        },
    }


def _state(found: Container) -> Json:
    running = found.status == "running"
    state: Json = {
        "Status": found.status,
        "Running": running,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": found.oom_killed,
        "Dead": found.status == "dead",
        "Pid": found.pid if running else 0,
        "ExitCode": found.exit_code,
        "Error": found.error,
        "StartedAt": rfc3339(found.started_at),
        "FinishedAt": ZERO_TIME if running else rfc3339(found.finished_at),
    }
    if found.health:
        state["Health"] = {
            "Status": found.health,
            "FailingStreak": found.failing_streak,
            "Log": [
                {
                    "Start": rfc3339(h.start),
                    "End": rfc3339(h.end),
                    "ExitCode": h.exit_code,
                    "Output": h.output,
                }
                for h in found.health_log
            ],
        }
    return state


def _config(config: ContainerConfig, image: Json, ports: Sequence[PortConfig]) -> Json:
    shown: Json = {
        "Hostname": config.hostname,
        "Domainname": "",
        "User": config.user if config.user is not None else image.get("User", ""),
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "ExposedPorts": {name: {} for name in exposed_ports(image, ports)},
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": False,
        "Env": merge_env(image.get("Env") or (), config.env),
        "Cmd": list(config.args)
        if config.args is not None
        else None
        if config.entrypoint
        else image.get("Cmd"),
        "Image": config.image,
        "Volumes": image.get("Volumes"),
        "WorkingDir": config.workdir if config.workdir is not None else image.get("WorkingDir", ""),
        "Entrypoint": list(config.entrypoint) if config.entrypoint is not None else image.get("Entrypoint"),
        "OnBuild": None,
        "Labels": {**(image.get("Labels") or {}), **config.labels},
    }
    if not shown["ExposedPorts"]:
        del shown["ExposedPorts"]
    signal = config.stop_signal or image.get("StopSignal")
    if signal:
        shown["StopSignal"] = signal
    health = config.healthcheck
    if health is not None:
        shown["Healthcheck"] = {
            "Test": list(health.test),
            "Interval": health.interval,
            "Timeout": health.timeout,
            "StartPeriod": health.start_period,
            "StartInterval": health.start_interval,
            "Retries": health.retries,
        }
    return shown


def merge_env(image: Sequence[str], own: Sequence[str]) -> list[str]:
    """The image's variables, with the container's own in place of those of the same name."""
    names = {e.partition("=")[0] for e in own}
    return [*own, *(e for e in image if e.partition("=")[0] not in names)]


def _log_options(config: ContainerConfig) -> Json:
    shown = {"max-size": size_text(config.log_max_size), "max-file": str(config.log_max_files)}
    return {key: value for key, value in shown.items() if value != "0"}


def _bindings(ports: Sequence[PortConfig]) -> Json:
    shown: Json = {}
    for p in ports:
        binding = {"HostIp": p.host_ip, "HostPort": str(p.published_port)}
        shown.setdefault(f"{p.target_port}/{p.protocol}", []).append(binding)
    return shown


def _security(config: ContainerConfig) -> list[str]:
    """As `docker run --security-opt` would have it; a profile is shown whole, as Docker does."""
    shown = ["no-new-privileges"] if config.no_new_privileges else []
    return [*shown, f"seccomp={config.seccomp}"] if config.seccomp else shown


def _asked(mount: Mount) -> Json:
    """A mount as it was asked for; what was left at its default is not shown."""
    shown: Json = {"Type": mount.type, "Source": mount.source, "Target": mount.target}
    options: Json = {}
    match mount.type:
        case "bind":
            options = {
                "Propagation": mount.propagation if mount.propagation != "rprivate" else "",
                "CreateMountpoint": mount.create_source,
                "NonRecursive": not mount.recursive,
                "ReadOnlyNonRecursive": mount.recursive_read_only == "no",
                "ReadOnlyForceRecursive": mount.recursive_read_only == "must",
            }
        case "volume":
            options = {
                "NoCopy": mount.no_copy,
                "Labels": mount.volume_labels,
                "Subpath": mount.subpath,
                "DriverConfig": {"Name": "local", "Options": mount.volume_options}
                if mount.volume_options
                else {},
            }
        case "tmpfs":
            options = {
                "SizeBytes": mount.tmpfs_size,
                "Mode": mount.tmpfs_mode if mount.tmpfs_mode != 0o1777 else 0,
                "Options": [["exec"]] if mount.tmpfs_exec else [],
            }
    options = {key: value for key, value in options.items() if value}
    if options:
        shown[f"{mount.type.capitalize()}Options"] = options
    return shown | ({"ReadOnly": True} if mount.read_only else {})


def _host_config(
    config: ContainerConfig, addresses: Sequence[ContainerAddress], ports: Sequence[PortConfig]
) -> Json:
    return {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": config.log_driver, "Config": _log_options(config)},
        "NetworkMode": addresses[0].network if addresses else "none",
        "PortBindings": _bindings(ports),
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "CapAdd": list(config.cap_add) or None,
        "CapDrop": list(config.cap_drop) or None,
        "ExtraHosts": [f"{name}:{address}" for name, address in config.hosts] or None,
        "GroupAdd": list(config.groups) or None,
        "OomScoreAdj": config.oom_score_adj,
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": config.read_only,
        "SecurityOpt": _security(config) or None,
        "Sysctls": dict(config.sysctls) or None,
        "Runtime": "",
        "Isolation": "",
        "Init": config.init,
        "NanoCpus": config.nano_cpus,
        "Memory": config.memory,
        "PidsLimit": config.pids or None,
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in config.ulimits] or None,
        "Mounts": [_asked(m) for m in config.mounts],
    }
