"""`overlace hns serve`: this host's HNS for other processes.

Owns what a person may write on the command line and the life of the serving process. What HNS does is
network/hns; what enforces it, network/enforce.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import ipaddress
import os
import re
import resource
import signal
import sys
from pathlib import Path

import click
import structlog

from overlace.model.errors import InvalidArgument, PermissionDenied, Unavailable
from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.server import Server
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.versions import LATEST, HnsVersion

VXLAN_PORT = 4789


@click.group()
def hns() -> None:
    """The Host Networking Service: HCN documents, as Windows takes them, over a loopback port."""


def read_version(text: str) -> HnsVersion:
    """15.4 as (15, 4). Raises InvalidArgument."""
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        raise InvalidArgument(f"invalid --hns-version {text!r}: use MAJOR.MINOR, such as 15.4")
    return int(found[1]), int(found[2])


def _check_address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text)) if text else ""
    except ValueError:
        raise InvalidArgument(f"invalid --provider-address {text!r}: use an IPv4 address") from None


@hns.command()
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="On 127.0.0.1; 0: any free one.")
@click.option(
    "--backend",
    type=click.Choice(["model", "linux"]),
    default="model",
    show_default=True,
    help="model: documents only; linux: packets in this network namespace.",
)
@click.option("--state", help="Folder that keeps the documents (default: nothing is kept).")
@click.option(
    "--provider-address",
    default="",
    help="The host's underlay address (default: the default route's).",
)
@click.option(
    "--hns-version",
    default=f"{LATEST[0]}.{LATEST[1]}",
    show_default=True,
    help="Be an HNS of this version: later features are refused.",
)
@click.option("--exec-root", default="/run/overlace-hns", show_default=True, help="Where sandboxes are kept.")
@click.option("--containers", help="Folder where a running container's namespace is a file named by its id.")
def serve(
    port: int,
    backend: str,
    state: str | None,
    provider_address: str,
    hns_version: str,
    exec_root: str,
    containers: str | None,
) -> None:
    """Serve until SIGTERM or SIGINT. The first line on stdout says where: `hns 127.0.0.1:PORT`."""
    version, address = read_version(hns_version), _check_address(provider_address)
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )  # stdout says where it serves
    folder = Path(state) if state else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    if backend == "linux":
        if os.geteuid() != 0:
            raise PermissionDenied("--backend linux makes interfaces and loads eBPF programs: run it as root")
        address = importlib.import_module("overlace.daemon.facts").default_address(address)
        places = Path(containers) if containers else None
        asyncio.run(run_linux(port, folder, address, version, Path(exec_root), places))
        return
    if containers:
        raise InvalidArgument("--containers: only --backend linux attaches anything to containers")
    if not address:  # networks show one, as they do on Windows; without packets any will do
        try:
            address = importlib.import_module("overlace.daemon.facts").default_address()
        except InvalidArgument:
            address = "127.0.0.1"
    asyncio.run(run_model(port, folder, address, version))


def announce(port: int) -> None:
    click.echo(f"hns 127.0.0.1:{port}")


def instance_of(exec_root: Path) -> str:
    """Names what is ours in the kernel: several may run on one machine, in network namespaces that share the BPF file
    system."""
    return "h" + hashlib.sha256(str(exec_root.absolute()).encode()).hexdigest()[:6]


async def run_linux(
    port: int,
    folder: Path | None,
    address: str,
    version: HnsVersion,
    exec_root: Path,
    containers: Path | None = None,
) -> None:
    """With packets. With a state folder the data path stays when this process ends, and is taken over by the next;
    without one it goes."""
    from overlace.network import hostports
    from overlace.network.enforce import NetworkEnforcer
    from overlace.network.hns.enforced import linux_check
    from overlace.network.linux.datapath import DataPath

    datapath = DataPath(instance_of(exec_root), folder or exec_root, address, exec_dir=exec_root)
    await datapath.open()
    try:
        under = datapath.underlay()
        check = linux_check(address, under.ifname, VXLAN_PORT, under.mtu, hostports.listening)
        service = _service(folder, HostFacts(address, version, check, lambda e: enforcer.counters(e)))
        enforcer = NetworkEnforcer(service, datapath, address, containers)
        await enforcer.open()
        await run_server(Server(HnsCalls(service), port, enforcer), port)
    finally:
        if folder is None:
            await datapath.destroy()
        else:
            await datapath.close()


def _service(folder: Path | None, facts: HostFacts) -> HnsService:
    try:
        return HnsService(folder, facts=facts)
    except OSError as e:
        raise Unavailable(f"--state {folder}: {e}") from None


async def run_model(port: int, folder: Path | None, address: str, version: HnsVersion) -> None:
    service = _service(folder, HostFacts(address, version))
    await run_server(Server(HnsCalls(service), port), port)


async def run_server(server: Server, port: int) -> None:
    """Serve until a signal. Raises Unavailable when the port is taken."""
    try:
        await server.open()
    except OSError as e:
        raise Unavailable(f"--port {port}: {e}") from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    announce(server.port)
    await stop.wait()
    await server.close()
