"""Hosts with real drivers, told of one cluster: what tests of drivers share.

Owns their processes, the entries everybody sees and asking names from inside a container.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import dns.message
import dns.rcode
from datapath_bed import Bed, Host, run

from overlace.model.netview import EndpointEntry, Entry, NetworkEntry, NodeEntry, ServiceEntry, container_mac
from overlace.model.objects import NetworkAttachment
from overlace.model.specs import PortConfig
from overlace.network.base import Attached, TaskNetwork
from overlace.network.linux.netns import run_inside

WORKER = Path(__file__).with_name("driver_worker.py")
INGRESS = NetworkEntry("ingress", "ingress", 4096, ("10.0.0.0/24",), ("10.0.0.1",), ingress=True)
BACK = NetworkEntry("backid", "back", 4097, ("10.0.1.0/24",), ("10.0.1.1",))
OTHER = NetworkEntry("otherid", "other", 4098, ("10.0.2.0/24",), ("10.0.2.1",))
WEB_PORT = PortConfig(target_port=80, published_port=8080)
SHOP: tuple[Entry, ...] = (  # service web on back, published
    INGRESS,
    BACK,
    OTHER,
    ServiceEntry("web", BACK.id, "shop_web", "10.0.1.100", ("web",)),
    ServiceEntry("web", INGRESS.id, "shop_web", "10.0.0.100", (), (WEB_PORT,)),
)


class DriverHost(Host):
    """A host whose process runs an OverlayDriver; node id is the host's name."""

    system = "linux"
    upstreams: tuple[str, ...] = ()
    sources: Path | None = None  # of another version of the program

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.sources)} if self.sources else dict(os.environ)

    def start(self, wrapper: str = "") -> Host:
        self.process = subprocess.Popen(
            [
                "nsenter",
                f"--net={self.path}",
                sys.executable,
                str(WORKER),
                self.instance,
                str(self.exec_dir / "state"),
                self.address,
                str(self.exec_dir),
                self.system,
                *self.upstreams,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(),
        )
        self.call("open", self.name)
        return self

    def kill(self) -> None:
        super().kill()

    @property
    def node(self) -> NodeEntry:
        last = int(self.address.rsplit(".", 1)[1])
        own = {n.id: f"10.0.{i}.{last + 200}" for i, n in enumerate((INGRESS, BACK, OTHER))}
        return NodeEntry(self.name, self.name, self.address, self.system, own)


class DriverBed(Bed):
    """`change` pushes the same entries to every host, as the manager does."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, Entry] = {}

    def add(self, name: str, kind: type[DriverHost] = DriverHost, **facts: object) -> DriverHost:
        host = kind(self, name, 11 + len(self.hosts))
        for key, value in facts.items():
            setattr(host, key, value)
        host.start()
        self.hosts.append(host)
        self.change(host.node)
        host.call("change", tuple(self.entries.values()), ())
        return host

    def change(self, *put: Entry, remove: tuple[str, ...] = ()) -> None:
        for key in remove:
            self.entries.pop(key, None)
        for e in put:
            self.entries[e.key] = e
        for host in self.hosts:
            host.call("change", put, remove)

    def restart(self, host: DriverHost, *, kill: bool = True) -> None:
        if not kill:
            host.call("close")
        host.kill()
        host.start()

    def run(
        self,
        host: DriverHost,
        task: str,
        *where: tuple[NetworkEntry, str],
        service: str = "web",
        serving: bool = True,
        ports: tuple[PortConfig, ...] = (),
        netns: tuple[Path, ...] = (),
    ) -> Attached:
        wish = wish_of(task, *where, service=service, ports=ports)
        attached: Attached = host.call("attach", wish, *netns)
        self.change(
            *(
                EndpointEntry(
                    task,
                    n.id,
                    host.name,
                    service,
                    service,
                    f"{service}.1.{task}",
                    a,
                    container_mac(a),
                    (),
                    serving,
                )
                for n, a in where
            )
        )
        return attached

    def remove(self) -> None:
        for host in self.hosts:
            if host.process is None:
                host.start()
            host.call("leave")
            host.kill()
            run("ip", "netns", "del", host.ns)
        self.hosts = []
        super().remove()


def wish_of(
    task: str, *where: tuple[NetworkEntry, str], service: str = "web", ports: tuple[PortConfig, ...] = ()
) -> TaskNetwork:
    return TaskNetwork(
        task_id=task,
        task_name=f"{service}.1.{task}",
        service_id=service,
        service_name=service,
        attachments=tuple(NetworkAttachment(n.id, (a + "/24",)) for n, a in where),
        host_ports=ports,
    )


def resolve(
    sandbox: Path, name: str, kind: str = "A", *, tcp: bool = False, server: str = "127.0.0.11"
) -> tuple[str, list[str]]:
    """(rcode, sorted answers) as a process in the sandbox gets them from `server`."""
    query = dns.message.make_query(name, kind).to_wire()

    def body() -> bytes:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        with made:
            made.settimeout(5)
            made.connect((server, 53))
            made.send((struct.pack(">H", len(query)) if tcp else b"") + query)
            data = made.recv(65535)
            if tcp:
                while len(data) < 2 + struct.unpack(">H", data[:2])[0]:
                    data += made.recv(65535)
            return data[2:] if tcp else data

    answer = dns.message.from_wire(run_inside(sandbox, body))

    return dns.rcode.to_text(answer.rcode()), sorted(r.to_text() for s in answer.answer for r in s)
