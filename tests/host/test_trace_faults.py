"""Ten faults planted in a running swarm, each found and named by `overlace trace`; and marked packets over all hosts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from overlace.lab import Lab
from overlace.lab.shop import image_name, push_images
from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS
from overlace.runtime.base import Platform
from overlace.runtime.oci.mkimage import Variant, busybox_rootfs, push, write_layout

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
A, B, W = "linux-1", "linux-2", "windows-1"
Json = dict[str, Any]


class World:
    """web on linux-1, store on linux-2, order on the emulated Windows host, all on network shop."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        push_images(lab.registry)
        self.docker("network", "create", "-d", "overlay", "shop")
        for name, host in (("web", A), ("store", B), ("order", W)):
            self.docker(
                "service", "create", "-d", "--name", name, "--network", "shop", "--constraint",
                f"node.hostname=={host}", image_name(lab.registry, name),
            )  # fmt: skip
        wait("three tasks run", lambda: all(self.task(s) for s in ("web", "store", "order")), 90)

    def docker(self, *argv: str) -> str:
        return self.lab.docker(A, *argv).stdout.strip()

    def task(self, service: str) -> Json | None:
        """Its running task, with id and address."""
        ids = self.docker("service", "ps", "-q", "--no-trunc", "-f", "desired-state=running", service).split()
        for one in ids:
            found = json.loads(self.docker("inspect", "--type", "task", one))[0]
            if found["Status"]["State"] == "running":
                addresses = [
                    n["Addresses"][0].split("/")[0]
                    for n in found["NetworksAttachments"]
                    if n["Network"]["Spec"]["Name"] == "shop"
                ]
                return {"id": found["ID"], "address": addresses[0]}
        return None

    def tasks(self, service: str) -> dict[int, Json]:
        """Running tasks by slot: id, address on shop, and the host's name."""
        names = {
            json.loads(self.docker("node", "inspect", n))[0]["ID"]: n for n in self.docker(
                "node", "ls", "--format", "{{.Hostname}}"
            ).split()
        }  # fmt: skip
        found = {}
        for one in self.docker("service", "ps", "-q", "--no-trunc", service).split():
            task = json.loads(self.docker("inspect", "--type", "task", one))[0]
            if task["Status"]["State"] == "running":
                found[task["Slot"]] = {
                    "id": task["ID"],
                    "host": names[task["NodeID"]],
                    "address": task["NetworksAttachments"][0]["Addresses"][0].split("/")[0],
                }
        return found

    def there(self, service: str) -> Json:
        found = self.task(service)
        assert found is not None
        return found

    def trace(self, *argv: str) -> Json:
        command = [sys.executable, "-m", "overlace.cli.main", "trace", *argv, "--json"]
        address = self.lab.host(A).docker_host
        assert address is not None
        done = subprocess.run([*command, "-H", address], capture_output=True, text=True, timeout=60)
        assert done.stdout, done.stderr
        found: Json = json.loads(done.stdout)
        assert done.returncode == (1 if found["Broken"] else 0)
        return found

    def sandbox(self, host: str, service: str) -> str:
        return f"{self.lab.host(host).exec_root}/network/netns/{self.there(service)['id']}"

    def inside(self, host: str, service: str, *argv: str) -> str:
        command = ["nsenter", f"--net={self.sandbox(host, service)}", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout

    @contextmanager
    def table(self, host: str, name: str) -> Iterator[bpf_syscall.Map]:
        pinned = bpf_syscall.get_pinned(BPFFS / "overlace" / self.lab.host(host).instance / "maps" / name)
        table = bpf_syscall.Map(pinned, name)
        try:
            yield table
        finally:
            table.close()

    def path(self, a: str, b: str) -> Json:
        address = self.lab.host(A).docker_host
        assert address is not None
        command = [sys.executable, "-m", "overlace.cli.main", "network", "health", "shop", "--format", "json"]
        done = subprocess.run([*command, "-H", address], capture_output=True, text=True, timeout=60)
        return next(p for p in json.loads(done.stdout)["Paths"] if (p["From"], p["To"]) == (a, b))


def wait(what: str, probe: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab.up(f"tfaults-{os.getpid()}", linux=2, windows=1) as lab:
        made = World(lab)
        wait("every path is measured", lambda: made.path(A, B)["Mtu"] and made.path(B, A)["Mtu"], 60)
        yield made


def broken(found: Json, where: str, *words: str) -> None:
    """It is broken there, and the sentence has these words; and there is something to do."""
    assert found["Broken"] is not None, found["Outcome"]
    text = f"{found['Broken']['Where']}: {found['Broken']['Reason']}"
    assert where in text, text
    for word in words:
        assert word.lower() in text.lower(), text
    assert found["Broken"]["Remedy"]


def test_without_a_fault_every_way_is_whole_and_measured(world: World) -> None:
    for target in ("store", "order"):
        found = world.trace("web", target, "--live")
        assert found["Broken"] is None, found["Outcome"]
        assert any("measured" in h["Effect"] for h in found["Hops"] if h["Kind"] == "underlay")
        assert found["Live"]["Answer"].startswith("accepted")
        seen = [s["Where"] for s in found["Live"]["Sightings"]]
        assert seen[0] == A and seen[-1] == (B if target == "store" else W)
        assert found["Live"]["Sightings"][-1]["Verdict"] == "delivered"


def test_marked_packets_of_other_protocols(world: World) -> None:
    address = world.there("order")["address"]
    assert world.trace("web", address, "--proto", "icmp", "--live")["Live"]["Answer"] == "echo reply"
    found = world.trace("order", world.there("web")["address"], "--proto", "udp", "--port", "9", "--live")
    assert "port unreachable" in found["Live"]["Answer"]
    assert found["Live"]["Sightings"][0]["Where"] == W


def test_wrong_acl(world: World) -> None:
    world.docker("service", "update", "-d", "--label-add", "overlace.policy.allow-from=order", "store")
    try:
        found = world.trace("web", "store")
        broken(found, "linux-", "ACL", "blocks it")
        assert "overlace.policy" in found["Broken"]["Remedy"]
    finally:
        world.docker("service", "update", "-d", "--label-rm", "overlace.policy.allow-from", "store")


def test_nothing_listens(world: World) -> None:
    broken(
        world.trace("web", "store", "--port", "81"),
        B,
        "store.1",
        "nothing listens on tcp port 81, only on 80",
    )
    live = world.trace("web", "store", "--port", "81", "--live")["Live"]
    assert live["Answer"].startswith("refused") and live["Broken"]["Where"] == B
    assert world.trace("web", "store", "--proto", "udp")["Broken"] is None, "nobody asked for UDP 80"


def push_pool(world: World) -> str:
    """An image whose container lives on when its web server does not."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        rootfs = busybox_rootfs(root / "rootfs", {"www/index.html": b"here\n"})
        config = {
            "Cmd": ["sh", "-c", "httpd -p 80 -h /www; exec sleep 100000"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
        }
        variants = [Variant(Platform(os="linux", architecture="amd64"), rootfs, config)]
        write_layout(root / "layout", variants, "pool")
        name = f"{world.lab.registry}/pool:1"
        asyncio.run(push(root / "layout", "pool", name))
        return name


def web_server(sandbox: str) -> int:
    """Process id of the httpd in a namespace."""
    number = os.stat(sandbox).st_ino
    for entry in Path("/proc").iterdir():
        try:
            if os.stat(entry / "ns/net").st_ino == number and (entry / "comm").read_text() == "httpd\n":
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no httpd in {sandbox}")


def test_dead_backend(world: World) -> None:
    """One of three: its program is gone, or stopped, while its container runs and the two others serve."""
    image = push_pool(world)
    world.docker("service", "create", "-d", "--name", "pool", "--network", "shop", "--replicas", "3", image)
    try:
        wait("three tasks run", lambda: len(world.tasks("pool")) == 3, 60)
        wait("all is well", lambda: world.trace("web", "pool", "--port", "80")["Broken"] is None)
        whole = world.trace("web", "pool", "--port", "80", "--live")
        assert [m["Answer"][:8] for m in whole["Live"]["Members"]] == ["accepted"] * 3
        tasks = world.tasks("pool")
        for slot, end, word in (
            (2, signal.SIGSTOP, "is stopped"),
            (3, signal.SIGKILL, "nothing listens on tcp port 80"),
        ):
            task = tasks[slot]
            host = world.lab.host(task["host"])
            server = web_server(f"{host.exec_root}/network/netns/{task['id']}")
            os.kill(server, end)
            try:
                found = world.trace("web", "pool")
                broken(found, task["host"], f"pool.{slot}", word)
                assert "1 of 3 backends" in found["Outcome"]
                assert [m["Task"].split(".")[1] for m in found["Members"] if not m["Ok"]] == [str(slot)]
                assert not found["Hops"][-1]["Ok"] and task["address"] in found["Hops"][-1]["Packet"]
                # from outside the container nobody can tell a stopped program: the kernel goes on accepting
                live = world.trace("web", "pool", "--live")["Live"]["Members"]
                refused = [m["Task"].split(".")[1] for m in live if m["Answer"].startswith("refused")]
                assert refused == ([str(slot)] if end == signal.SIGKILL else [])
            finally:
                if end == signal.SIGSTOP:
                    os.kill(server, signal.SIGCONT)
    finally:
        world.docker("service", "rm", "pool")


def test_missing_route(world: World) -> None:
    route = world.inside(A, "web", "ip", "route", "show", "default").strip()
    world.inside(A, "web", "ip", "route", "del", "default")
    try:
        broken(world.trace("web", "internet"), A, "missing route", "no default route")
    finally:
        world.inside(A, "web", "ip", "route", "add", *route.split(), "onlink")


def test_blocked_tunnel_port(world: World) -> None:
    rule = f"type filter hook ingress device {B} priority 0; udp dport 4789 drop;"
    script = f"table netdev t {{\nchain i {{ {rule} }}\n}}\n"
    nft = world.lab.command("switch", ["nft", "-f", "-"])
    subprocess.run(nft, input=script, text=True, check=True, timeout=20)
    try:
        wait("the path is down", lambda: world.path(A, B)["State"] == "down", 20)
        broken(world.trace("web", "store"), f"{A} > {B}", "UDP 4789")
        live = world.trace("web", "store", "--live")["Live"]
        assert live["Answer"] == ""
    finally:
        subprocess.run(nft, input="delete table netdev t", text=True, check=True, timeout=20)
        wait("the path is whole again", lambda: world.path(A, B)["State"] == "ok", 20)


def test_small_mtu(world: World) -> None:
    shrink = world.lab.command("switch", ["ip", "link", "set", B, "mtu", "1396"])
    subprocess.run(shrink, check=True, timeout=20)
    try:
        # a bridge lets four bytes more pass, for a VLAN tag
        wait("the path is measured", lambda: 1396 <= world.path(A, B)["Mtu"] <= 1400, 60)
        mtu = world.path(A, B)["Mtu"]
        broken(world.trace("web", "store", "--size", "1450"), f"{A} > {B}", "1450 bytes", str(mtu - 50))
        small = world.trace("web", "store")
        assert small["Broken"] is None
        assert any(f"{mtu + 1} bytes" in n and A in n and B in n for n in small["Notes"]), small["Notes"]
        wait("the container follows", lambda: f"mtu {mtu - 50}" in world.inside(A, "web", "ip", "link"), 20)
    finally:
        grow = world.lab.command("switch", ["ip", "link", "set", B, "mtu", "1500"])
        subprocess.run(grow, check=True, timeout=20)


def port_row(world: World, host: str, table: bpf_syscall.Map, service: str) -> tuple[bytes, bytes]:
    raw = IPv4Address(world.there(service)["address"]).packed
    return next((k, v) for k, v in table.items() if v[4:8] == raw)


def test_wrong_vni(world: World) -> None:
    with world.table(A, "ports") as table:
        key, value = port_row(world, A, table, "web")
        table.update(key, struct.pack("I", 9999) + value[4:])
        try:
            broken(world.trace("web", "store"), A, "wrong VNI", "9999")
        finally:
            table.update(key, value)


def test_stale_endpoint(world: World) -> None:
    address = world.there("store")["address"]
    with world.table(A, "endpoints") as table:
        raw = IPv4Address(address).packed
        key, value = next((k, v) for k, v in table.items() if k[4:8] == raw)
        table.update(key, IPv4Address(world.lab.host(W).address).packed + value[4:])
        try:
            broken(world.trace("web", "store"), A, "stale endpoint", address)
        finally:
            table.update(key, value)


def test_down_interface(world: World) -> None:
    world.inside(B, "store", "ip", "link", "set", "eth0", "down")
    try:
        broken(world.trace("web", "store"), B, "eth0", "down")
    finally:
        world.inside(B, "store", "ip", "link", "set", "eth0", "up")


def test_full_table(world: World) -> None:
    with world.table(A, "endpoints") as table:
        kept = dict(table.items())
        value = next(iter(kept.values()))
        junk = [struct.pack("II", 1 << 23, n) for n in range(table.max_entries - len(kept))]
        table.put_many(dict.fromkeys(junk, value))
        try:
            broken(world.trace("web", "store"), A, "table endpoints is full")
        finally:
            table.delete_many(junk)


def test_drained_service(world: World) -> None:
    world.docker("service", "scale", "-d", "store=0")
    try:
        wait("no task is left", lambda: world.task("store") is None)
        broken(world.trace("web", "store"), "", "no task")
    finally:
        world.docker("service", "scale", "-d", "store=1")
        wait("it runs again", lambda: world.task("store"), 60)


def test_the_sentences_on_a_terminal(world: World) -> None:
    address = world.lab.host(A).docker_host
    assert address is not None
    command = [sys.executable, "-m", "overlace.cli.main", "trace", "web", "order", "--live", "-H", address]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    for word in ("VXLAN header on", "measured", "live: a packet marked", "answer: accepted", "delivered"):
        assert word in text, text
