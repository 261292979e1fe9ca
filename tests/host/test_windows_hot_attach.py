# ruff: noqa: F401, F811 - fixtures are imported by name
"""Endpoints attached to running containers of the stand-in for Docker on Windows, by HNS, with packets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datapath_bed import Bed, ask, connect, line, run
from hns_bed import Refused, Served, local, overlay
from oci_bed import Registry, registry, rootfs
from windows_engine_bed import Engine, images

from overlace.network.linux.netns import run_inside

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
LOOP = ["sh", "-c", "while :; do sleep 0.1; done"]


class World:
    """A Windows host: HNS and engine in one network namespace."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.image = f"{registry.address}/win:1"
        self.bed = Bed()
        self.address = "172.28.77.51"
        self.path = Path("/var/run/netns") / f"{self.bed.name}-w"
        self.bed.plug(self.path.name, "w", f"{self.address}/24")
        self.engine = Engine(folder, registry.address)
        self.hns_options = (
            "--state", str(folder / "state"), "--provider-address", self.address,
            "--containers", str(self.engine.namespaces),
        )  # fmt: skip
        self.call("POST", f"/images/create?fromImage={self.image}")  # while the registry can be reached
        self.engine.end()
        self.served = Served(folder, "linux", self.path, *self.hns_options)
        self.engine.where, self.engine.options = self.path, ("--hns", str(self.served.wire.port))
        self.engine.start()

    def call(self, method: str, path: str, body: object = None) -> Any:
        def dial() -> socket.socket:
            return socket.create_connection(("127.0.0.1", self.engine.port), timeout=30)

        connection = http.client.HTTPConnection("engine")
        connection.sock = run_inside(self.engine.where, dial) if self.engine.where else dial()
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as answer:
            raw = answer.read()
        connection.close()
        assert answer.status < 400, raw
        return json.loads(raw) if path.partition("?")[0].endswith(("/json", "containers/create")) else None

    def container(self) -> str:
        asked = {"Image": self.image, "Cmd": LOOP, "HostConfig": {"NetworkMode": "none"}}
        return str(self.call("POST", "/containers/create", asked)["Id"])

    def running(self) -> str:
        made = self.container()
        self.call("POST", f"/containers/{made}/start")
        return made

    def namespace(self, container: str) -> Path:
        return self.engine.namespaces / container

    def resolv_conf(self, container: str) -> str:
        pid = self.call("GET", f"/containers/{container}/json")["State"]["Pid"]
        return Path(f"/proc/{pid}/root/etc/resolv.conf").read_text()

    def endpoint(self, address: str, **more: Any) -> str:
        net = self.served.hcn.enumerate("Network")
        network = net[0] if net else self.served.hcn.create("Network", overlay())["ID"]
        return str(self.served.hcn.create("Endpoint", local(network, self.address, address, **more))["ID"])

    def attach(self, endpoint: str, container: str, verb: str = "attach") -> Any:
        body = {"ContainerId": container, "SystemType": "Container"}
        return self.served.hcn.hnscall("POST", f"/endpoints/{endpoint}/{verb}", body)

    def remove(self) -> None:
        for found in self.call("GET", "/containers/json?all=1") if self.engine.process else ():
            self.call("DELETE", f"/containers/{found['Id']}?force=1")
        self.engine.remove()
        self.served.hcn.clear()
        self.served.end()
        self.served.options = ("--provider-address", self.address)  # without a state, the end takes all along
        self.served.start()
        self.served.end()
        self.bed.unplug(self.path.name)
        self.bed.remove()


@pytest.fixture(scope="module")
def world(registry: Registry, images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("w"), registry)
    try:
        yield made
    finally:
        made.remove()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_an_endpoint_is_in_the_container_with_its_name_servers(world: World) -> None:
    a, b = world.running(), world.running()
    dns = {"ServerList": ["10.9.9.9"], "Search": ["corp.example"]}
    first, second = world.endpoint("10.244.3.10", Dns=dns), world.endpoint("10.244.3.11")
    world.attach(first, a)
    world.attach(second, b)
    assert "10.244.3.10/24" in run("nsenter", f"--net={world.namespace(a)}", "ip", "-o", "-4", "addr")
    until(lambda: world.resolv_conf(a) == "nameserver 10.9.9.9\nsearch corp.example\n")
    assert "nameserver" not in world.resolv_conf(b)
    world.bed.serve(world.namespace(a), 80, "a")
    with connect(world.namespace(b), "10.244.3.10", 80) as connection:
        assert line(connection)[:2] == ["a", "10.244.3.11"]
    world.attach(first, a)  # again: nothing is wrong with that
    # all three may die; the packets do not hear of it
    world.engine.end(signal.SIGKILL)
    world.served.kill()
    assert ask(world.namespace(b), "10.244.3.10", 80)
    world.served.start()
    world.engine.start()
    assert ask(world.namespace(b), "10.244.3.10", 80)
    world.attach(first, a)
    world.attach(first, a, "detach")
    assert "10.244.3.10" not in run("nsenter", f"--net={world.namespace(a)}", "ip", "-o", "-4", "addr")


def test_a_container_that_does_not_run_is_refused(world: World) -> None:
    made = world.container()
    endpoint = world.endpoint("10.244.3.20")
    for container in (made, "0" * 64):
        with pytest.raises(Refused) as refused:
            world.attach(endpoint, container)
        assert refused.value.hr == 0x8037010E and container in refused.value.text
    assert world.served.hcn.get("Endpoint", endpoint)["ID"]  # and all else goes on
    world.call("POST", f"/containers/{made}/start")
    world.attach(endpoint, made)
    assert "10.244.3.20" in run("nsenter", f"--net={world.namespace(made)}", "ip", "-o", "-4", "addr")


def test_what_was_attached_to_a_container_that_ended_holds_nothing_up(world: World) -> None:
    gone, other = world.running(), world.running()
    first, second = world.endpoint("10.244.3.30"), world.endpoint("10.244.3.31")
    world.attach(first, gone)
    world.call("DELETE", f"/containers/{gone}?force=1")
    until(lambda: not world.namespace(gone).exists())
    world.attach(second, other)
    world.served.kill()
    world.served.start()  # it comes back with a document for a container that is no more
    with pytest.raises(Refused):
        world.attach(world.endpoint("10.244.3.32"), gone)
    world.attach(second, other, "detach")
    world.attach(second, other)
    world.attach(first, gone, "detach")
    world.served.hcn.delete("Endpoint", first)
