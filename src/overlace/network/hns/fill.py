"""What HNS fills into a document: ids of subnets, MAC pools, addresses and MACs, routes, prefix lengths, the
router's MAC, the provider address, compartments.

Owns the choices (pure). They are the same after a restart or need nothing but the state. Must not check what
clients wrote: validate.py does, before and after.
"""

from __future__ import annotations

import hashlib
import ipaddress
import uuid
from collections.abc import Iterator

import msgspec

from overlace.model.family import is_six
from overlace.model.netview import container_mac
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
    Ipam,
    IpConfiguration,
    IpSubnet,
    MacPool,
    MacRange,
    Route,
    Subnet,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.routes import ANYWHERE, gateways_of
from overlace.network.hns.state import State

NAT_POOL = ipaddress.IPv4Network("172.16.0.0/16")
_SUBNET_IDS = uuid.UUID("6f0c7c5e-52ab-4a36-9d27-1b3f1f2a9f10")


def fill_router_mac(d: HostComputeNetwork) -> HostComputeNetwork:
    """HNS makes the distributed router's MAC; ours follows the gateway so that it is the same after a
    restart."""
    if d.type != "Overlay" or p.policy_of(d.policies, p.DrMacAddress) is not None:
        return d
    gateway = next(hop for hop in gateways_of(d) if not is_six(hop))
    mac = p.DrMacAddress(p.DrMacAddressSettings(normal_mac(container_mac(gateway))))
    return msgspec.structs.replace(d, policies=(*d.policies, mac))


def fill_network(d: HostComputeNetwork, state: State, provider_address: str) -> HostComputeNetwork:
    """Subnet of a NAT network without one, subnet ids, MAC pool, the host's provider address."""
    if d.type == "NAT" and not d.subnets:
        d = msgspec.structs.replace(d, ipams=(Ipam("Static", (_nat_subnet(state),)),))
    ipams = tuple(
        msgspec.structs.replace(i, subnets=tuple(_with_ids(s, d.id) for s in i.subnets)) for i in d.ipams
    )
    d = msgspec.structs.replace(d, ipams=ipams)
    if not d.mac_pool.ranges:
        d = msgspec.structs.replace(d, mac_pool=_mac_pool(d.id))
    if provider_address and d.type in ("Overlay", "L2Bridge"):
        old = state.get(d.id, HostComputeNetwork)
        told = p.policy_of(old.policies, p.ProviderAddress) if old is not None else None
        # what HNS told itself follows the host; another the client wrote is for the host's check
        kept = tuple(x for x in d.policies if not isinstance(x, p.ProviderAddress) or x != told)
        if p.policy_of(kept, p.ProviderAddress) is None:
            kept = (*kept, p.ProviderAddress(p.ProviderAddressSettings(provider_address)))
        d = msgspec.structs.replace(d, policies=kept)
    return d


def _with_ids(s: Subnet, network: str) -> Subnet:
    inner = tuple(
        msgspec.structs.replace(i, id=i.id.upper() or str(uuid.uuid4()).upper()) for i in s.ip_subnets
    )
    guid = s.id.upper() or str(uuid.uuid5(_SUBNET_IDS, f"{network}/{s.ip_address_prefix}")).upper()
    return msgspec.structs.replace(s, id=guid, ip_subnets=inner)


def _nat_subnet(state: State) -> Subnet:
    taken = [ipaddress.IPv4Network(a) for a in (state.host,) if a and not is_six(a)]
    taken += [
        ipaddress.IPv4Network(s.ip_address_prefix)
        for d in state.documents.values()
        if isinstance(d, HostComputeNetwork) and d.type == "NAT"
        for s in d.subnets
    ]
    for net in NAT_POOL.subnets(new_prefix=20):
        if not any(net.overlaps(t) for t in taken):
            return Subnet(ip_address_prefix=str(net), routes=(Route(str(net[1]), ANYWHERE),))
    raise HcnError(
        Code.INVALID_SUBNET, f"no free prefix is left in {NAT_POOL} for a NAT network: name one in Ipams"
    )


def _mac_pool(network: str) -> MacPool:
    """4096 addresses 00-15-5D-xx-x0-00 to xF-FF, as HNS gives a network."""
    number = int.from_bytes(hashlib.sha256(network.encode()).digest()[:2], "big") >> 4
    head = f"00-15-5D-{number >> 4:02X}-{number & 15:X}"
    return MacPool((MacRange(f"{head}0-00", f"{head}F-FF"),))


def _number(mac: str) -> int:
    return int(mac.replace("-", ""), 16)


def _macs(pool: MacPool) -> Iterator[str]:
    for r in pool.ranges:
        for n in range(_number(normal_mac(r.start_mac_address)), _number(normal_mac(r.end_mac_address)) + 1):
            text = f"{n:012X}"
            yield "-".join(text[i : i + 2] for i in range(0, 12, 2))


def fill_endpoint(d: HostComputeEndpoint, network: HostComputeNetwork, state: State) -> HostComputeEndpoint:
    """Address, prefix length and MAC where the client left them to HNS. Raises HcnError when none is free."""
    configs = d.ip_configurations
    if not d.remote and network.subnets and not any(c.ip_address for c in configs):
        wanted = configs[0].ip_subnet_id.upper() if configs else ""
        configs = (_free_address(network, state, wanted),)
    configs = tuple(_with_length(c, network) for c in configs)
    if configs != d.ip_configurations:
        d = msgspec.structs.replace(d, ip_configurations=configs)
    if d.mac_address or d.remote:
        return d
    if network.mac_pool.ranges:
        taken = {
            e.mac_address
            for guid in state.endpoints_of.get(network.id, ())
            if (e := state.get(guid, HostComputeEndpoint)) is not None
        }
        mac = next((m for m in _macs(network.mac_pool) if m not in taken), "")
        if not mac:
            raise HcnError(
                Code.INVALID_ENDPOINT, f"MacAddress: the MacPool of network {network.name} has none left"
            )
        return msgspec.structs.replace(d, mac_address=mac)
    if d.address and not is_six(d.address):
        return msgspec.structs.replace(d, mac_address=normal_mac(container_mac(d.address)))
    return d


def fill_provider(d: HostComputeEndpoint, network: HostComputeNetwork) -> HostComputeEndpoint:
    """The host that a local endpoint of an Overlay network is on, where the client names none: this one."""
    own = p.policy_of(network.policies, p.ProviderAddress)
    if network.type != "Overlay" or d.remote or own is None or p.policy_of(d.policies, p.ProviderAddress):
        return d
    return msgspec.structs.replace(d, policies=(own, *d.policies))


def fill_routes(d: HostComputeEndpoint, network: HostComputeNetwork) -> HostComputeEndpoint:
    """The way out that HNS gives an endpoint that names none: its subnet's."""
    if d.routes or d.remote or not d.address:
        return d
    subnet = _subnet_of(d.address, network)
    return msgspec.structs.replace(d, routes=subnet.routes) if subnet is not None else d


def _subnet_of(address: str, network: HostComputeNetwork) -> Subnet | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None  # validate.py says so
    for s in network.subnets:
        if parsed in ipaddress.ip_network(s.ip_address_prefix):
            return s
    return None


def _with_length(c: IpConfiguration, network: HostComputeNetwork) -> IpConfiguration:
    if c.prefix_length or not c.ip_address:
        return c
    subnet = _subnet_of(c.ip_address, network)
    if subnet is None:
        return c
    return msgspec.structs.replace(c, prefix_length=ipaddress.ip_network(subnet.ip_address_prefix).prefixlen)


def prefix_of_id(guid: str, network: HostComputeNetwork) -> str | None:
    """The prefix of the subnet, or of the part of one, that has this id."""
    for s in network.subnets:
        parts: tuple[Subnet | IpSubnet, ...] = (s, *s.ip_subnets)
        for part in parts:
            if part.id and part.id.upper() == guid.upper():
                return part.ip_address_prefix
    return None


def _free_address(network: HostComputeNetwork, state: State, subnet_id: str) -> IpConfiguration:
    wanted = prefix_of_id(subnet_id, network) if subnet_id else None
    if subnet_id and wanted is None:
        raise HcnError(
            Code.SUBNET_NOT_FOUND,
            f"IpConfigurations.IpSubnetId {subnet_id} is of no subnet of network {network.name}: leave it out, or use "
            "one of its",
        )
    for s in network.subnets:
        net = ipaddress.ip_network(s.ip_address_prefix)
        part = ipaddress.ip_network(wanted) if wanted is not None else net
        if part.version != net.version or not part.subnet_of(net):  # type: ignore[arg-type]
            continue
        kept = {*(r.next_hop for r in s.routes), *state.source_vips(network.id)}
        # the subnet's first is kept for a gateway even where none is named
        first = max(0, 2 - (int(part[0]) - int(net[0])))
        for number in range(first, min(part.num_addresses, 1 << 20)):
            if part[number] == net[-1]:
                break
            address = str(part[number])
            if address in kept or (network.id, address) in state.vips:
                continue
            if (network.id, address) not in state.by_address:
                return IpConfiguration(address, net.prefixlen, subnet_id)
    raise HcnError(
        Code.ADDR_INVALID_OR_RESERVED,
        f"IpConfigurations: {wanted or f'network {network.name}'} has no free address left: delete an endpoint there",
    )


def fill_namespace(d: HostComputeNamespace, state: State) -> HostComputeNamespace:
    """A compartment number; 1 is the host's own."""
    number = d.namespace_id
    if not number:
        number = len(state.by_namespace_id) + 2  # with n taken, one near here is free
        while number in state.by_namespace_id:
            number += 1
    return msgspec.structs.replace(d, namespace_id=number, namespace_guid=d.id)
