"""WindowsDriver in this (Windows) Python: a task's life on the HNS that OVERLACE_HNS_PORT leads to. Writes what came of
it, as JSON, to the file named first; the second names a folder for its state, the rest go on sys.path."""

from __future__ import annotations

import asyncio
import json
import pathlib
import socket
import sys

sys.path[:0] = sys.argv[3:]

import dns.message  # noqa: E402
import dns.rcode  # noqa: E402

from overlace.model.errors import OverlaceError  # noqa: E402
from overlace.model.netview import NetView, NetworkEntry, NodeEntry, ServiceEntry  # noqa: E402
from overlace.model.objects import NetworkAttachment  # noqa: E402
from overlace.model.specs import PortConfig  # noqa: E402
from overlace.network.base import TaskNetwork  # noqa: E402
from overlace.network.windows.adapters import adapters  # noqa: E402
from overlace.network.windows.driver import WindowsDriver  # noqa: E402
from overlace.network.windows.library import Hcn, Library  # noqa: E402
from overlace.network.windows.ports import listening  # noqa: E402

ADDRESS = "127.0.0.1"
CONTAINER = "c" * 64
BACK = NetworkEntry("backid", "back", 4097, ("10.0.1.0/24",), ("10.0.1.1",))
TASK = TaskNetwork(
    task_id="t1",
    task_name="web.1.t1",
    service_id="web",
    service_name="web",
    attachments=(NetworkAttachment("backid", ("10.0.1.11/24",)),),
    host_ports=(PortConfig(target_port=80, publish_mode="host"),),
)


async def main() -> dict[str, object]:
    told: dict[str, object] = {"platform": sys.platform}
    with socket.create_server((ADDRESS, 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind((ADDRESS, 0))
        port, dns_port = server.getsockname()[1], free.getsockname()[1]
        told["seen"] = ("", 6, port) in listening() and ("", 17, dns_port) in listening()
    told["gone"] = ("", 6, port) in listening()
    told["adapters"] = [[a.name, list(a.addresses), a.mtu, a.loopback] for a in adapters()]
    state = pathlib.Path(sys.argv[2])
    hcn = Hcn(Library.load())
    driver = WindowsDriver(hcn, state, ADDRESS, dns_port=dns_port)
    await driver.open("me")
    view = NetView()
    me = NodeEntry("me", "me", ADDRESS, "windows", {"backid": "10.0.1.2"})
    for entry in (me, BACK, ServiceEntry("web", "backid", "web", "10.0.1.100")):
        view.put(entry)
    await driver.apply_view(view, None)
    prepared = await driver.prepare(TASK)
    told["port"] = prepared.host_ports[0].published_port
    attached = await driver.attach(TASK, pathlib.Path(CONTAINER))
    told["sandbox"], told["addresses"] = str(attached.sandbox), attached.addresses
    endpoint = json.loads(hcn.hns_call("GET", "/endpoints/"))["Output"]
    told["containers"] = [e.get("SharedContainers") for e in endpoint if e["IPAddress"] == "10.0.1.11"]
    told["asked"] = await asyncio.to_thread(ask, dns_port)
    told["described"] = {
        k: v for k, v in driver.describe().items() if k in ("hns_version", "provider_addresses")
    }
    await driver.close()
    again = WindowsDriver(hcn, state, ADDRESS, dns_port=dns_port)
    await again.open("me")
    await again.apply_view(view, None)
    told["again"] = (await again.attach(TASK, pathlib.Path(CONTAINER))).addresses
    await again.leave()
    told["left"] = [len(hcn.enumerate(kind)) for kind in ("Network", "Endpoint", "LoadBalancer", "Namespace")]
    await again.close()
    return told


def ask(port: int) -> str:
    """The rcode for somebody who is no container."""
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.settimeout(10)
        made.sendto(dns.message.make_query("web", "A").to_wire(), (ADDRESS, port))
        return dns.rcode.to_text(dns.message.from_wire(made.recv(512)).rcode())


try:
    found = asyncio.run(main())
except (OverlaceError, OSError) as e:
    found = {"error": f"{type(e).__name__}: {e}"}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
