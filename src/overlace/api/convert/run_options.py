"""The texts inside of a container's HostConfig: what the words of `docker run -v`, `-p`, `--tmpfs`, `--add-host`,
`--security-opt` and `--restart` mean. Pure.

Owns their syntax, in Docker's words. Must not know the rest of a container.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from overlace.agent.standalone.records import Restart, RestartName
from overlace.api.convert.create_request import Binding, HostConfig, RestartPolicy
from overlace.model.errors import InvalidArgument, Unimplemented
from overlace.model.seccomp import check_profile
from overlace.model.specs import BindOptions, Mount, PortConfig, TmpfsOptions, VolumeOptions

_MEMORY_STEP = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


def parse_security(options: Sequence[str]) -> tuple[bool, str]:
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


def parse_extra_hosts(entries: Sequence[str]) -> tuple[tuple[str, str], ...]:
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


def parse_tmpfs(target: str, options: str) -> Mount:
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
            host_ip = _host_ip(binding, inside)
            first, _, last = binding.host_port.partition("-")
            if binding.host_port and not first.isdecimal():
                raise InvalidArgument(f"invalid host port '{binding.host_port}' for {inside}")
            if last and last != first:
                raise Unimplemented(
                    f"HostConfig.PortBindings {binding.host_port}:{inside} is not supported: a range of host ports for "
                    "one port; name one, or none to have one chosen"
                )
            if protocol == "sctp" and int(first or 0) not in (0, number):
                raise Unimplemented(
                    f"HostConfig.PortBindings {first}:{inside} is not supported: SCTP's checksum covers "
                    f"the ports; publish {number}:{inside}"
                )
            ports.append(_port(protocol, number, number if protocol == "sctp" else int(first or 0), host_ip))
    if host.publish_all_ports:
        there = {(p.protocol, p.target_port) for p in ports}
        for text in exposed:
            number, protocol = parse_port(text)
            if (protocol, number) not in there:
                ports.append(_port(protocol, number, number if protocol == "sctp" else 0))
    return tuple(dict.fromkeys(ports))


def _host_ip(binding: Binding, inside: str) -> str:
    """The one address; "": every one of the host, of both families."""
    if binding.host_ip in ("", "0.0.0.0", "::"):
        return ""
    try:
        found = ipaddress.ip_address(binding.host_ip)
    except ValueError:
        raise InvalidArgument(f"invalid IP address '{binding.host_ip}' of port {inside}") from None
    of_one_link = isinstance(found, ipaddress.IPv6Address) and (found.is_link_local or found.ipv4_mapped)
    if found.is_multicast or of_one_link:
        raise InvalidArgument(
            f"HostConfig.PortBindings {binding.host_ip}:{binding.host_port}:{inside}: use an address this host has on "
            "more than a link"
        )
    return str(found)


def _port(protocol: str, target: int, published: int, host_ip: str = "") -> PortConfig:
    return PortConfig(
        protocol=protocol, target_port=target, published_port=published, publish_mode="host", host_ip=host_ip
    )


def parse_port(text: str) -> tuple[int, str]:
    """`80/tcp` as (80, tcp). Raises InvalidArgument."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if not number.isdecimal() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f"invalid port specification: '{text}'; use PORT or PORT/tcp, /udp, /sctp")
    return int(number), protocol


def normal_port(port: str) -> str:
    """With its protocol: `80` is `80/tcp`. Raises InvalidArgument."""
    number, protocol = parse_port(port)
    return f"{number}/{protocol}"
