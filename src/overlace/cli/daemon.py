"""`overlace daemon`: the options of the daemon, checked, and the call that runs it.

Owns what a person may write on the command line. Must not know how a daemon works: `overlace.daemon` is
above this room and is called by name.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import socket
from typing import Literal

import click
import msgspec

from overlace.model.errors import InvalidArgument
from overlace.model.generic import GenericResources, parse_node_resources
from overlace.model.system import ON_WINDOWS

if ON_WINDOWS:
    DEFAULT_DATA_ROOT = os.path.join(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "overlace")
    DEFAULT_EXEC_ROOT = os.path.join(DEFAULT_DATA_ROOT, "run")
    DEFAULT_DOCKER_HOST = "npipe:////./pipe/docker_engine"
else:
    DEFAULT_DATA_ROOT = "/var/lib/overlace"
    DEFAULT_EXEC_ROOT = "/run/overlace"
    DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"
WINDOWS_PIPE = "npipe:////./pipe/overlace"  # where a Windows host's API is when nothing else is said
_PIPE = re.compile(r"//\./pipe/[^\\/\s]+")
_BUILD = re.compile(r"\d+\.\d+\.\d+\.\d+")


class DaemonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon is started with; all values checked."""

    data_root: str = DEFAULT_DATA_ROOT
    exec_root: str = DEFAULT_EXEC_ROOT
    hosts: tuple[str, ...] = ()  # as for -H; never empty when from the command line
    pidfile: str = ""
    hostname: str = ""
    underlay_address: str = ""  # empty: the daemon takes the address of the default route
    insecure_registries: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    generic: GenericResources = GenericResources()
    dns: tuple[str, ...] = ()
    runtime: Literal["oci", "docker", "auto"] = "oci"
    docker_host: str = DEFAULT_DOCKER_HOST  # of the engine that runs containers, with runtime docker or auto
    emulate_windows: str = ""  # a Windows build, 10.0.20348.2527; empty: this is the Linux host it is
    log_level: str = "info"
    metrics_addr: str = ""  # IP:PORT of GET /metrics; empty: none
    flow_log: str = ""  # file of opened and ended connections; empty: none
    service_balancing: Literal["auto", "packet", "socket"] = "auto"


def check_hosts(hosts: tuple[str, ...], windows: bool = ON_WINDOWS) -> tuple[str, ...]:
    """Raise InvalidArgument for what is no listening address; Docker's `-H` takes the same forms (a unix socket is Linux'
    own, a named pipe Windows')."""
    local = "npipe:////./pipe/NAME" if windows else "unix:///path/to/socket"
    for host in hosts:
        kind, _, rest = host.partition("://")
        if windows and kind == "npipe" and _PIPE.fullmatch(rest):
            continue
        if not windows and kind == "unix" and rest.startswith("/"):
            if len(rest.encode()) > 107:
                raise InvalidArgument(
                    f"-H {host}: a unix socket's path has at most 107 bytes; use a shorter one"
                )
            continue
        address, _, port = rest.rpartition(":")
        if kind == "tcp" and port.isdigit() and 0 < int(port) < 65536:
            _check_address("-H", address.strip("[]"), host)
            continue
        raise InvalidArgument(f"invalid -H {host!r}: use {local} or tcp://IP:PORT")
    return hosts


def check_docker_host(host: str) -> str:
    """A `DOCKER_HOST` on this machine. Raises InvalidArgument."""
    kind, _, rest = host.partition("://")
    if (kind == "unix" and rest.startswith("/")) or (kind in ("npipe", "tcp") and rest):
        return host
    raise InvalidArgument(
        f"invalid --docker-host {host!r}: use unix:///path/to/docker.sock, tcp://IP:PORT or npipe:////./pipe/NAME"
    )


def check_labels(labels: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"invalid --label {label!r}: use KEY=VALUE")
        found[key] = value
    return found


def _check_generic(given: tuple[str, ...]) -> GenericResources:
    try:
        return parse_node_resources(given)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid --node-generic-resource: {error.message}") from None


def _check_underlay(address: str, windows: bool) -> str:
    if not address:
        return ""
    six = ":" in _check_address("--underlay-address", address)
    if six and windows:
        raise InvalidArgument(
            f"invalid --underlay-address {address}: the HNS of a Windows host tunnels over IPv4 alone; give an IPv4 "
            "address of this host"
        )
    if six and ipaddress.IPv6Address(address).is_link_local:
        raise InvalidArgument(f"invalid --underlay-address {address}: it holds on one link only")
    return str(ipaddress.ip_address(address))


def _check_address(option: str, address: str, whole: str | None = None) -> str:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise InvalidArgument(
            f"invalid {option} {whole or address!r}: {address!r} is no IP address"
        ) from None
    return address


def _check_metrics(text: str) -> str:
    address, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"invalid --metrics-addr {text!r}: use IP:PORT, such as 127.0.0.1:9323")
    _check_address("--metrics-addr", address.strip("[]"), text)
    return text


def check_options(
    *,
    data_root: str,
    exec_root: str,
    hosts: tuple[str, ...],
    pidfile: str | None,
    hostname: str | None,
    underlay_address: str | None,
    insecure_registries: tuple[str, ...],
    labels: tuple[str, ...],
    generic: tuple[str, ...] = (),
    dns: tuple[str, ...],
    runtime: Literal["oci", "docker", "auto"] = "oci",
    docker_host: str = DEFAULT_DOCKER_HOST,
    emulate_windows: str | None,
    log_level: str,
    metrics_addr: str | None = None,
    flow_log: str | None = None,
    service_balancing: Literal["auto", "packet", "socket"] = "auto",
) -> DaemonOptions:
    """Turn what was typed into DaemonOptions; raise InvalidArgument naming option, value and remedy."""
    for option, path in (("--data-root", data_root), ("--exec-root", exec_root), ("--flow-log", flow_log)):
        if path is not None and not os.path.isabs(path):
            raise InvalidArgument(f"invalid {option} {path!r}: use an absolute path")
    if emulate_windows is not None and not _BUILD.fullmatch(emulate_windows):
        raise InvalidArgument(
            f"invalid --emulate-windows {emulate_windows!r}: use a full build, such as 10.0.20348.2527"
        )
    if emulate_windows is not None and runtime == "docker":
        raise InvalidArgument(
            "invalid --runtime docker with --emulate-windows: a Docker Engine on Linux runs no Windows image; "
            "leave --runtime out"
        )
    if ON_WINDOWS:
        check_windows(runtime, emulate_windows, service_balancing)
    hosts = check_hosts(hosts or (WINDOWS_PIPE if ON_WINDOWS else f"unix://{exec_root}/docker.sock",))
    if runtime != "oci" and check_docker_host(docker_host) in hosts:
        raise InvalidArgument(f"invalid --docker-host {docker_host}: this daemon itself listens there (-H)")
    return DaemonOptions(
        data_root=data_root,
        exec_root=exec_root,
        hosts=hosts,
        pidfile=pidfile or "",
        hostname=hostname or socket.gethostname(),
        underlay_address=_check_underlay(underlay_address or "", ON_WINDOWS or bool(emulate_windows)),
        insecure_registries=insecure_registries,
        labels=check_labels(labels),
        generic=_check_generic(generic),
        dns=tuple(_check_address("--dns", address) for address in dns),
        runtime=runtime,
        docker_host=docker_host,
        emulate_windows=emulate_windows or "",
        log_level=log_level,
        metrics_addr=_check_metrics(metrics_addr) if metrics_addr else "",
        flow_log=flow_log or "",
        service_balancing=service_balancing,
    )


def check_windows(runtime: str, emulate_windows: str | None, service_balancing: str = "auto") -> None:
    """Raise InvalidArgument for what a real Windows host cannot be."""
    if runtime == "oci":
        raise InvalidArgument(
            "invalid --runtime oci: the embedded runtime runs Linux containers; a Windows host needs Docker Engine: "
            "leave --runtime out"
        )
    if emulate_windows is not None:
        raise InvalidArgument("invalid --emulate-windows: this is a Windows host; leave it out")
    if service_balancing != "auto":
        raise InvalidArgument(
            f"invalid --service-balancing {service_balancing}: this host's own HNS balances services; leave it out"
        )


@click.command()
@click.option("--data-root", default=DEFAULT_DATA_ROOT, show_default=True, help="Where state is kept.")
@click.option("--exec-root", default=DEFAULT_EXEC_ROOT, show_default=True, help="Where run-time files are.")
@click.option(
    "-H",
    "--host",
    "hosts",
    multiple=True,
    help="Serve the Engine API at unix:///PATH (Windows: npipe:////./pipe/NAME) or tcp://IP:PORT.",
)
@click.option("--pidfile", help="Write the process id here.")
@click.option("--hostname", help="The node's name (default: this machine's).")
@click.option(
    "--underlay-address", help="Address other hosts reach this one at (default: the default route's)."
)
@click.option(
    "--insecure-registry", "insecure_registries", multiple=True, help="HOST:PORT spoken to in plain HTTP."
)
@click.option("--label", "labels", multiple=True, help="Engine label KEY=VALUE.")
@click.option(
    "--node-generic-resource",
    "generic",
    multiple=True,
    help="KIND=NAME or KIND=NUMBER that services can reserve here, such as gpu=UUID1 or ssd=3.",
)
@click.option(
    "--dns", multiple=True, help="Name server that answers what is not a service (default: the host's)."
)
@click.option(
    "--runtime",
    type=click.Choice(["oci", "docker", "auto"]),
    default="docker" if ON_WINDOWS else "oci",
    show_default=True,
    help="What runs containers: the embedded runtime, this machine's Docker Engine, or that if it answers.",
)
@click.option(
    "--docker-host",
    default=DEFAULT_DOCKER_HOST,
    show_default=True,
    help="Where that Docker Engine listens; it must run on this machine.",
)
@click.option("--emulate-windows", help="Be an emulated Windows host of this build, such as 10.0.20348.2527.")
@click.option("--metrics-addr", metavar="IP:PORT", help="Serve Prometheus metrics there, at /metrics.")
@click.option(
    "--flow-log", metavar="FILE", help="Write opened and ended connections there, one JSON object a line."
)
@click.option(
    "--service-balancing",
    type=click.Choice(["auto", "packet", "socket"]),
    default="auto",
    show_default=True,
    help="Give containers' TCP connections to services their backends when the socket connects (where cgroup v2 "
    "allows it), or when the first packet comes. A Windows host's own HNS does it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def daemon(**options: object) -> None:
    """Run this host: the Engine API, the node's agent and, on a manager, the manager."""
    checked = check_options(**options)  # type: ignore[arg-type]  # click gives the types the options declare
    importlib.import_module("overlace.daemon.process").need_privileges()
    importlib.import_module("overlace.daemon").run(checked)
