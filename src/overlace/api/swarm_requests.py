"""What people may ask of /swarm/init, /swarm/join and /swarm/leave: checks and defaults, as pure
functions.

Owns validation in Docker's words. Interface names are looked up through `interfaces`, which the caller
fills. Must not carry anything out: the daemon does. Source of words and order: moby daemon/cluster/swarm.go
and listen_addr.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from overlace.api.backend import InitRequest, JoinRequest, LocalSwarm
from overlace.manager.control import check_swarm
from overlace.model.errors import InvalidArgument, OverlaceError, Unavailable, Unimplemented
from overlace.model.objects import SWARM_PORT, VXLAN_PORT
from overlace.model.specs import (
    CAConfig,
    DispatcherConfig,
    Doc,
    OrchestrationConfig,
    RaftConfig,
    SwarmSpec,
)

D = TypeVar("D", bound=Doc)
Interfaces = Mapping[str, str]  # interface name -> its IPv4 address, or its IPv6 one where it has no other

NOT_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node'
    " to swarm and try again."
)
IS_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run"
    " this command on a manager node or promote the current node to a manager."
)
NOT_MEMBER = "This node is not part of a swarm"
IS_MEMBER = (
    'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
)
LOCKED = (
    "Swarm is encrypted and needs to be unlocked before it can be used. Please use"
    ' "docker swarm unlock" to unlock it.'
)
_BAD_LISTEN = "listen address must be an IP address or network interface (with optional port number)"
_BAD_ADVERTISE = (
    "advertise address must be a non-zero IP address or network interface (with optional port number)"
)
_BAD_DATA_PATH = (
    "data path address must be a non-zero IP address or network interface (without a port number)"
)
_NO_LOCK = "AutoLockManagers is not supported yet: managers cannot be locked"
_TOKEN = re.compile(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}")


def explain_no_manager(swarm: LocalSwarm) -> OverlaceError:
    """Why this node answers no question about the swarm (moby daemon/cluster/cluster.go errNoManager)."""
    if swarm.state == "inactive":
        return Unavailable(NOT_MANAGER)
    if swarm.state == "locked":
        return Unavailable(LOCKED)
    if swarm.state == "error" and swarm.error:
        return Unavailable(f"This node's part in the swarm failed: {swarm.error}")
    return Unavailable(IS_WORKER)


def check_init(request: InitRequest, swarm: LocalSwarm, interfaces: Interfaces) -> InitRequest:
    """The request with addresses resolved and defaults filled in.

    Raises Unavailable (already a member), InvalidArgument, Unimplemented.
    """
    if swarm.state != "inactive" and not (request.force_new_cluster and swarm.control_available):
        raise Unavailable(IS_MEMBER)
    listen = _listen(request.listen_addr, interfaces)
    port = listen.rpartition(":")[2]
    if request.auto_lock_managers:
        raise Unimplemented(_NO_LOCK)
    pool = [_pool(text, request.subnet_size or 24) for text in request.default_addr_pool]
    if not 0 <= request.subnet_size <= 29:
        raise InvalidArgument(f"subnet size is out of range: {request.subnet_size}")
    data_port = request.data_path_port or VXLAN_PORT
    if not 1024 <= data_port <= 49151:
        raise InvalidArgument(f"Datapath port number is not in valid range (1024-49151) : {data_port}")
    if data_port != VXLAN_PORT:
        raise Unimplemented(
            f"DataPathPort {data_port} is not supported yet: use {VXLAN_PORT} or leave it out"
        )
    spec = complete_spec(request.spec)
    check_swarm(spec)
    advertise = _advertise(request.advertise_addr, port, interfaces)
    return msgspec.structs.replace(
        request,
        listen_addr=heard_at(listen, advertise),
        advertise_addr=advertise,
        data_path_addr=_data_path(request.data_path_addr, interfaces),
        data_path_port=data_port,
        default_addr_pool=pool,
        subnet_size=request.subnet_size or 24,
        availability=_availability(request.availability),
        spec=spec,
    )


def check_join(request: JoinRequest, swarm: LocalSwarm, interfaces: Interfaces) -> JoinRequest:
    """The request with addresses resolved. Raises Unavailable (already a member), InvalidArgument."""
    if swarm.state != "inactive":
        raise Unavailable(IS_MEMBER)
    listen = _listen(request.listen_addr, interfaces)
    if not request.remote_addrs:
        raise InvalidArgument("at least 1 RemoteAddr is required to join")
    remotes = []
    for text in request.remote_addrs:
        try:
            remotes.append(_host_port(text, "", SWARM_PORT))
        except InvalidArgument as error:
            raise InvalidArgument(f'invalid remoteAddr "{text}": {error.message}') from None
    if not _TOKEN.fullmatch(request.join_token.strip()):
        raise InvalidArgument("invalid join token")
    advertise = _advertise(request.advertise_addr, listen.rpartition(":")[2], interfaces)
    return msgspec.structs.replace(
        request,
        listen_addr=heard_at(listen, advertise),
        advertise_addr=advertise,
        data_path_addr=_data_path(request.data_path_addr, interfaces),
        remote_addrs=remotes,
        join_token=request.join_token.strip(),
        availability=_availability(request.availability),
    )


def check_leave(swarm: LocalSwarm, force: bool, managers: int) -> None:
    """Raises Unavailable when the node must not leave just like that. `managers`: how many the swarm has,
    this one too."""
    if swarm.state == "inactive":
        raise Unavailable(NOT_MEMBER)
    if not swarm.control_available or force:
        return
    text = "You are attempting to leave the swarm on a node that is participating as a manager. "
    if managers <= 1:
        text += (
            "Removing the last manager erases all current state of the swarm."
            " Use `--force` to ignore this message. "
        )
    else:
        text += "Use `--force` to suppress this message. "
    raise Unavailable(text)


def complete_spec(spec: SwarmSpec) -> SwarmSpec:
    """Zeros mean defaults, as clients send them for what was not said. Raises InvalidArgument."""
    if spec.name not in ("", "default"):
        raise InvalidArgument('swarm spec must be named "default"')
    return msgspec.structs.replace(
        spec,
        name="default",
        raft=_nonzero(spec.raft, RaftConfig(), "keep_old_snapshots"),
        dispatcher=_nonzero(spec.dispatcher, DispatcherConfig()),
        ca_config=_nonzero(spec.ca_config, CAConfig()),
        orchestration=_nonzero(spec.orchestration, OrchestrationConfig(), "task_history_retention_limit"),
    )


def _nonzero(given: D, defaults: D, *keep: str) -> D:
    return msgspec.structs.replace(
        given,
        **{
            name: getattr(given, name) or getattr(defaults, name)
            for name in given.__struct_fields__
            if name not in keep
        },
    )


# -- addresses -----------------------------------------------------------------------------------------------


def _host_port(text: str, default_host: str, default_port: int) -> str:
    """`[tcp://]host[:port]` completed. Raises InvalidArgument."""
    if not text:
        raise InvalidArgument("invalid empty address")
    text = text.removeprefix("tcp://").rstrip("/")
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgument(f"invalid port {port!r}: use a number from 1 to 65535")
    host = host or default_host
    if not host or re.search(r"[\s/]", host):
        raise InvalidArgument(f"invalid host {host!r}")
    return f"[{host}]:{port or default_port}" if ":" in host else f"{host}:{port or default_port}"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _listen(text: str, interfaces: Interfaces) -> str:
    try:
        address = _host_port(text, "0.0.0.0", SWARM_PORT)
    except InvalidArgument as error:
        raise InvalidArgument(f'invalid ListenAddr "{text}": {error.message}') from None
    host, _, port = address.rpartition(":")
    host = interfaces.get(host, host)
    if _ip(host.strip("[]")) is None:
        raise InvalidArgument(_BAD_LISTEN)
    return f"{host}:{port}"


def _advertise(text: str, listen_port: str, interfaces: Interfaces) -> str:
    if not text:
        return ""
    try:
        address = _host_port(text, "", int(listen_port))
    except InvalidArgument:
        raise InvalidArgument(_BAD_ADVERTISE) from None
    host, _, port = address.rpartition(":")
    host = interfaces.get(host, host)
    ip = _ip(host.strip("[]"))
    if ip is None or ip.is_unspecified:
        raise InvalidArgument(_BAD_ADVERTISE)
    if ip.version == 6 and ip.is_link_local:
        raise InvalidArgument(f"{_BAD_ADVERTISE}: {ip} holds on one link only")
    return f"[{ip}]:{port}" if ip.version == 6 else f"{host}:{port}"


def heard_at(listen: str, advertise: str) -> str:
    """The listen address, for one that clients leave at every IPv4 address: where the advertised one is heard."""
    host, _, port = listen.rpartition(":")
    return f"[::]:{port}" if advertise.startswith("[") and host == "0.0.0.0" else listen


def _data_path(text: str, interfaces: Interfaces) -> str:
    if not text:
        return ""
    ip = _ip(interfaces.get(text, text))
    if ip is None or ip.is_unspecified:
        raise InvalidArgument(_BAD_DATA_PATH)
    if ip.version == 6 and ip.is_link_local:
        raise InvalidArgument(f"{_BAD_DATA_PATH}: {ip} holds on one link only")
    return str(ip)


def _pool(text: str, size: int) -> str:
    text = text.strip()
    try:
        network = ipaddress.ip_network(text, strict=False)
        if "/" not in text:
            raise ValueError("invalid CIDR address")
    except ValueError as error:
        raise InvalidArgument(f"invalid base pool {text}: {error}") from None
    if isinstance(network, ipaddress.IPv6Network):
        return _pool6(network)
    if size < network.prefixlen:
        raise InvalidArgument(f'invalid CIDR: "{text}". Subnet size is too small for pool: {size}')
    return str(network)


def _pool6(pool: ipaddress.IPv6Network) -> str:
    """The size said is that of IPv4 subnets; IPv6 ones are /64, or the pool as a whole when it is smaller."""
    if (
        pool.prefixlen > 125
        or pool.is_multicast
        or pool.is_link_local
        or pool.is_loopback
        or pool.is_reserved
    ):
        raise InvalidArgument(
            f"invalid base pool {pool}: containers cannot have such addresses; use a private range such as fd00::/48"
        )
    return str(pool)


def _availability(text: str) -> str:
    if text not in ("", "active", "pause", "drain"):
        raise InvalidArgument(f'invalid Availability: "{text}"')
    return text or "active"
