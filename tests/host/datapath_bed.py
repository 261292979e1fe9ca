"""Hosts as network namespaces around a switch namespace, each with a DataPath process; sockets opened inside
any of them.

Owns making and removing everything it made, under names unique to the run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overlace.model.paths import tunnel_overhead
from overlace.network.balancing import Wish
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import (
    Delta,
    Entry,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
)

WORKER = Path(__file__).with_name("datapath_worker.py")
PREFIX, PREFIX6 = "172.28.77.", "fd00:28:77::"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def mac_of(address: str) -> str:
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def network(vni: int, subnet: str, **flags: bool) -> Network:
    gateway = subnet.rsplit(".", 1)[0] + ".1"
    return Network(vni, (subnet,), gateway, mac_of(gateway), **flags)


class Host:
    """A namespace with an underlay address; `call` runs a DataPath method in the host's process. `client_address`: where
    clients of published ports find it, empty where it has no IPv4 address."""

    def __init__(self, bed: Bed, name: str, last: int) -> None:
        self.bed, self.name = bed, name
        four, six = PREFIX + str(last), PREFIX6 + str(last)
        self.address = four if bed.families == "4" else six
        self.client_address = four if "4" in bed.families else ""
        self.ns = f"{bed.name}-{name}"
        self.path = Path("/var/run/netns") / self.ns
        self.instance = f"t{bed.name[4:]}{last}"
        self.exec_dir = bed.folder / name
        self.process: subprocess.Popen[bytes] | None = None
        bed.plug(
            self.ns, name, *(f"{four}/24",) * ("4" in bed.families), *(f"{six}/64",) * ("6" in bed.families)
        )

    def start(self, wrapper: str = "", balancing: Wish = "auto") -> Host:
        """Start the host's process and open its data path. `wrapper`: Python text that runs the worker."""
        runner = [sys.executable, *(["-c", wrapper] if wrapper else []), str(WORKER)]
        where = [self.instance, str(self.exec_dir / "state"), self.address, str(self.exec_dir), balancing]
        self.process = subprocess.Popen(
            ["nsenter", f"--net={self.path}", *runner, *where], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.call("open")
        return self

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        assert self.process and self.process.stdin and self.process.stdout
        body = pickle.dumps((method, args, kwargs))
        self.process.stdin.write(struct.pack("I", len(body)) + body)
        self.process.stdin.flush()
        head = self.process.stdout.read(4)
        assert head, f"{self.name}: worker died in {method}"
        ok, value = pickle.loads(self.process.stdout.read(struct.unpack("I", head)[0]))
        if not ok:
            raise value
        return value

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
        self.process = None

    def put(self, *entries: Entry) -> None:
        self.call("apply", Delta(put=entries))

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.call("counters")
        return counters


class Container:
    """A sandbox with one interface or more."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.path: Path = host.call("ensure_sandbox", name)
        self.endpoints: list[LocalEndpoint] = []

    def join(
        self,
        net: Network,
        address: str,
        *,
        default: bool = True,
        outbound: bool = False,
        mtu: int = 0,
        exceptions: tuple[str, ...] = (),
        exceptions6: tuple[str, ...] = (),
        six: str = "",
    ) -> LocalEndpoint:
        """`six`: its IPv6 address, of the network's second subnet. `mtu`: 0, what fits."""
        mtu = mtu or 1500 - tunnel_overhead(self.host.address)
        endpoint = LocalEndpoint(
            net.vni, address, 24, mac_of(address), str(uuid.uuid4()).upper(), outbound, exceptions
        )
        ifname = f"eth{len(self.endpoints)}"
        entries, more = [endpoint], {}
        if six:
            entries.append(
                LocalEndpoint(net.vni, six, 64, endpoint.mac, endpoint.endpoint_id, outbound, exceptions6)
            )
            more = {"six": entries[1], "gateway6": net.other_gateways[0]}
        self.host.put(net, *entries)
        self.host.call("attach", endpoint, self.path, ifname, default, net.gateway, mtu, **more)
        self.endpoints.append(endpoint)
        for other in self.host.bed.hosts:
            if other is not self.host and not net.local:
                other.put(
                    net, *(RemoteEndpoint(net.vni, e.address, e.mac, self.host.address) for e in entries)
                )
        return endpoint

    @property
    def address(self) -> str:
        return self.endpoints[0].address


class Bed:
    """A switch, hosts and one client outside the swarm. `families`: "4", hosts have IPv4 addresses, "6", IPv6 ones,
    "46" both, and the tunnels run over IPv6."""

    def __init__(self, families: str = "4") -> None:
        self.families = families
        self.name = f"ovt-{secrets.token_hex(3)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.switch = f"{self.name}-sw"
        self._sockets: list[socket.socket] = []
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        self.hosts: list[Host] = []
        self.client = Path("/var/run/netns") / f"{self.name}-client"
        self.client_address = PREFIX + "200"
        self.plug(self.client.name, "client", self.client_address + "/24")

    def plug(self, ns: str, port: str, *addresses: str) -> None:
        run("ip", "netns", "add", ns)
        run(
            "ip",
            "-n",
            self.switch,
            "link",
            "add",
            "name",
            f"p-{port}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            ns,
        )
        run("ip", "-n", self.switch, "link", "set", f"p-{port}", "master", "br0", "up")
        run("ip", "-n", ns, "link", "set", "lo", "up")
        run("ip", "-n", ns, "link", "set", "eth0", "up")
        for address in addresses:
            run("ip", "-n", ns, "addr", "add", address, "dev", "eth0", *(["nodad"] * (":" in address)))

    def unplug(self, ns: str) -> None:
        run("ip", "netns", "del", ns)

    def host(self, name: str) -> Host:
        host = Host(self, name, 11 + len(self.hosts))
        self.hosts.append(host)
        return host.start()

    def frontend(self, *frontends: Frontend) -> None:
        for host in self.hosts:
            host.put(*frontends)

    def remove(self) -> None:
        for open_socket in self._sockets:
            # wakes its thread: one that still waits could take the next bed's listener by the same number
            if open_socket.type == socket.SOCK_STREAM:
                with contextlib.suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()
        for host in self.hosts:
            if host.process is None:
                host.start()
            host.call("destroy")
            host.kill()
            run("ip", "netns", "del", host.ns)
        run("ip", "netns", "del", self.client.name)
        run("ip", "netns", "del", self.switch)
        shutil.rmtree(self.folder)

    # sockets

    def serve(
        self, where: Path, port: int, label: str, kind: int = socket.SOCK_STREAM, address: str = "0.0.0.0"
    ) -> None:
        """Answer every connection (or datagram) with "label peer-address peer-port\\n", then echo."""

        def body() -> socket.socket:
            made = socket.socket(_family(address), kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            if kind == socket.SOCK_STREAM:
                made.listen(256)
            return made

        listener = run_inside(where, body)
        self._sockets.append(listener)
        target = self._stream if kind == socket.SOCK_STREAM else self._datagrams
        threading.Thread(target=target, args=(listener, label), daemon=True).start()

    def _stream(self, listener: socket.socket, label: str) -> None:
        def serve_one(connection: socket.socket, who: tuple[str, int]) -> None:
            try:
                with connection:
                    connection.sendall(f"{label} {who[0]} {who[1]}\n".encode())
                    while data := connection.recv(65536):
                        connection.sendall(data)
            except OSError:
                pass

        while True:
            try:
                connection, who = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(connection, who), daemon=True).start()

    def _datagrams(self, listener: socket.socket, label: str) -> None:
        while True:
            try:
                data, who = listener.recvfrom(65536)
                listener.sendto(f"{label} {who[0]} {who[1]} {len(data)}\n".encode(), who)
            except OSError:
                return


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(
    where: Path, address: str, port: int, *, timeout: float = 3, source: tuple[str, int] | None = None
) -> socket.socket:
    """A TCP connection from a namespace."""

    def body() -> socket.socket:
        made = socket.socket(_family(address), socket.SOCK_STREAM)
        try:
            made.settimeout(timeout)
            if source:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind(source)
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    return run_inside(where, body)


def line(connection: socket.socket) -> list[str]:
    """The server's greeting, split."""
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        assert more, "connection closed before the greeting"
        data += more
    return data.decode().split()


def ask(where: Path, address: str, port: int, **kwargs: Any) -> list[str]:
    """Connect, read the greeting, close."""
    with connect(where, address, port, **kwargs) as connection:
        return line(connection)


def ask_udp(where: Path, address: str, port: int, size: int = 10, timeout: float = 3) -> list[str]:
    """One datagram and its answer."""

    def body() -> socket.socket:
        made = socket.socket(_family(address), socket.SOCK_DGRAM)
        made.settimeout(timeout)
        made.connect((address, port))
        return made

    with run_inside(where, body) as question:
        question.send(b"x" * size)
        return question.recv(4096).decode().split()


def echo(connection: socket.socket, data: bytes) -> bool:
    """Send `data` through an echoing connection; True when it all came back unchanged."""
    sender = threading.Thread(target=connection.sendall, args=(data,), daemon=True)
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        more = connection.recv(1 << 17)
        if not more:
            break
        got += more
    sender.join(5)
    return bytes(got) == data


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(where: Path, address: str, timeout: float = 1.0, size: int = 56) -> bool:
    """One echo request; True when its reply came."""

    six = ":" in address
    icmp, asks, answers, at = (socket.IPPROTO_ICMPV6, 128, 129, 0) if six else (socket.IPPROTO_ICMP, 8, 0, 20)

    def body() -> socket.socket:
        made = socket.socket(_family(address), socket.SOCK_RAW, icmp)
        made.settimeout(timeout)
        return made

    with run_inside(where, body) as raw:
        ident = int.from_bytes(os.urandom(2), "big")
        payload = bytes(size)
        head = struct.pack("!BBHHH", asks, 0, 0, ident, 1)  # the kernel fills in ICMPv6's checksum
        head = struct.pack("!BBHHH", asks, 0, _checksum(head + payload), ident, 1)
        try:
            raw.sendto(head + payload, (address, 0))
        except OSError:  # dropped on the way out of this very namespace
            return False
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            try:
                data, _ = raw.recvfrom(65536)
            except OSError:
                return False
            if data[at] == answers and data[at + 4 : at + 6] == head[4:6]:
                return True
        return False


@contextmanager
def made_bed(families: str = "4") -> Iterator[Bed]:
    bed = Bed(families)
    try:
        yield bed
    finally:
        bed.remove()
