"""Names, virtual addresses, published ports: what packets do between containers and from outside."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .bed import Docker, Swarm, eventually, overlay_address, vip

Image = Callable[[str], str]
WHO = "cgi-bin/who"
UDP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.sendto(b"?", (sys.argv[1], int(sys.argv[2])))
print(s.recv(512).decode())
"""


@pytest.fixture(scope="module", autouse=True)
def town(anydocker: Docker, swarm: Swarm, image: Image) -> Iterator[None]:
    """One network with: `probe` on every host, `web` behind a VIP, `rr` without one, `held` on host ports."""
    create = ("service", "create", "-d", "--network", "town", "--name")
    anydocker("network", "create", "-d", "overlay", "town")
    anydocker(*create, "probe", "--mode", "global", "--hostname", "{{.Node.Hostname}}", image("multi:1"))
    anydocker(
        *("service", "create", "-d", "--network", "name=town,alias=site", "--name", "web", "--replicas", "3"),
        *("--hostname", "web-{{.Task.Slot}}", "-p", "8080:80", "-p", "8053:53/udp", image("multi:1")),
    )
    anydocker(*create, "rr", "--replicas", "3", "--endpoint-mode", "dnsrr", image("app:1"))
    anydocker(
        *create,
        *("held", "--mode", "global", "-p", "mode=host,published=8081,target=80", "--constraint"),
        *("node.hostname==linux-2", "--hostname", "held", image("app:1")),
    )
    for name, count in (("probe", 3), ("web", 3), ("rr", 3), ("held", 1)):
        swarm.running(name, count)
    yield
    for name in ("probe", "web", "rr", "held"):
        anydocker("service", "rm", name)
    anydocker("network", "rm", "town")


@pytest.fixture
def probes(swarm: Swarm) -> dict[str, Any]:
    """The probe's task on each host."""
    return {host: tasks[0] for host, tasks in swarm.where("probe", 3).items()}


def who(text: str) -> str:
    return str(json.loads(text)["host"]) if text else ""


def test_names(swarm: Swarm, probes: dict[str, Any], outside: str) -> None:
    town = swarm.get("/networks/town")["Id"]
    webs = {overlay_address(task, "town") for task in swarm.running("web", 3)}
    rrs = {overlay_address(task, "town") for task in swarm.running("rr", 3)}
    address = vip(swarm.get("/services/web"), town)
    [first] = [task for task in swarm.running("web", 3) if task["Slot"] == 1]
    for host, probe in probes.items():
        expected = {
            "web": {address},
            "WEB": {address},
            "site": {address},
            "web.town": {address},
            "tasks.web": webs,
            f"web.1.{first['ID']}": {overlay_address(first, "town")},
            "rr": rrs,
            "tasks.rr": rrs,
            "nosuch": set(),
            "tasks.nosuch": set(),
            "www.example": {"203.0.113.1"},  # asked of the name server beyond the underlay
        }
        for name, addresses in expected.items():
            found = eventually(
                lambda probe=probe, name=name, addresses=addresses: (
                    (swarm.resolve(probe, name),) if swarm.resolve(probe, name) == addresses else None
                ),
                f"{name} on {host} is {addresses}",
                3,
            )
            assert found
        assert swarm.fetch(probe, "http://www.example/").strip() == swarm.lab.host(host).address
    said = swarm.inside(probes["linux-1"], f"nslookup {address} 127.0.0.11")
    assert "web.town" in said or "name = web" in said, "and back from an address to its name"


def test_a_virtual_address_spreads_requests(swarm: Swarm, probes: dict[str, Any]) -> None:
    for host, probe in probes.items():
        eventually(lambda probe=probe: swarm.fetch(probe, f"http://web/{WHO}", 1), f"{host} reaches web")
        said = swarm.inside(
            probe, f"for i in $(seq 30); do timeout 3 wget -qO- http://web/{WHO}; done", timeout=60
        )
        counts = Counter(who(line) for line in said.splitlines())
        assert set(counts) == {"web-1", "web-2", "web-3"} and sum(counts.values()) == 30, (host, counts)
        assert min(counts.values()) >= 3, f"{host}: {counts}"
    for task in swarm.running("web", 3):
        said = swarm.inside(
            task, f"for i in $(seq 6); do timeout 3 wget -qO- http://web/{WHO}; done", timeout=30
        )
        assert len(said.splitlines()) == 6, "a replica reaches its own service, itself included"


def test_every_container_reaches_every_other(swarm: Swarm, probes: dict[str, Any]) -> None:
    tasks = [*swarm.running("web", 3), *swarm.running("rr", 3), *probes.values()]
    for host, probe in probes.items():
        mine = overlay_address(probe, "town")
        for task in tasks:
            address = overlay_address(task, "town")
            said = swarm.fetch(probe, f"http://{address}/{WHO}")
            assert said, f"{host} does not reach {address} on {swarm.host_of(task)}"
            if address != mine:
                assert json.loads(said)["client"] == mine, "the other side sees the container itself"
            assert "1 packets received" in swarm.inside(probe, f"ping -c 1 -W 2 {address}"), address


def test_large_transfers_fit_the_underlay(swarm: Swarm, probes: dict[str, Any]) -> None:
    server = probes["linux-2"]
    swarm.inside(server, "dd if=/dev/urandom of=/www/large bs=1k count=3000 2>/dev/null")
    digest = swarm.inside(server, "md5sum < /www/large")
    for host in ("linux-1", "windows-1"):
        link = swarm.inside(probes[host], "cat /sys/class/net/eth0/mtu 2>/dev/null || ip link show eth0")
        assert "1450" in link, "the underlay's 1500 less what VXLAN adds"
        url = f"http://{overlay_address(server, 'town')}/large"
        assert swarm.inside(probes[host], f"timeout 20 wget -qO- {url} | md5sum", timeout=30) == digest


def test_published_ports(swarm: Swarm) -> None:
    client = swarm.lab.host("client").address
    for host in ("linux-1", "linux-2", "windows-1"):
        address = swarm.lab.host(host).address
        found = swarm.answers(f"http://{address}:8080/{WHO}")
        assert found["client"] == client, f"through {host} the client's own address was lost"
        seen = {who(swarm.curl(f"http://{address}:8080/{WHO}")) for _ in range(12)}
        assert seen == {"web-1", "web-2", "web-3"}, f"{host} leads to {seen}"
        said = swarm.lab.exec("client", sys.executable, "-c", UDP, address, "8053").stdout.split()
        assert said[0].startswith("web-") and said[1] == client, said
        # from one swarm host to another's published port, and to its own
        for other in ("linux-1", "linux-2"):
            assert swarm.curl(f"http://{address}:8080/{WHO}", host=other), (
                f"{other} does not reach {host}:8080"
            )
    assert swarm.curl(f"http://{swarm.lab.manager.address}:8082/{WHO}") == "", "nothing else is open"


def test_published_ports_on_loopback(swarm: Swarm) -> None:
    for host in ("linux-1", "linux-2"):
        assert swarm.curl(f"http://127.0.0.1:8080/{WHO}", host=host), (
            f"{host}: localhost:8080 does not answer"
        )


def test_host_ports(swarm: Swarm) -> None:
    found = swarm.answers(f"http://{swarm.lab.host('linux-2').address}:8081/{WHO}")
    assert (found["host"], found["client"]) == ("held", swarm.lab.host("client").address)
    assert swarm.curl(f"http://{swarm.lab.host('linux-1').address}:8081/{WHO}") == "", "only where it runs"


def test_containers_reach_published_ports(swarm: Swarm, probes: dict[str, Any]) -> None:
    for host, probe in probes.items():
        for other in ("linux-1", "linux-2"):
            url = f"http://{swarm.lab.host(other).address}:8080/{WHO}"
            assert swarm.fetch(probe, url), f"a container on {host} does not reach {other}:8080"


def test_names_follow_a_scale_within_a_second(
    anydocker: Docker, swarm: Swarm, probes: dict[str, Any]
) -> None:
    def known(count: int) -> None:
        expected = {overlay_address(task, "town") for task in swarm.running("rr", count)}
        since = time.monotonic()
        for host, probe in probes.items():
            eventually(
                lambda probe=probe: swarm.resolve(probe, "rr") == expected,
                f"{host} knows the {count} of rr",
                1,
            )
        assert time.monotonic() - since < 1.5

    try:
        for count in (6, 2, 4):
            anydocker("service", "scale", "-d", f"rr={count}")
            known(count)
    finally:
        anydocker("service", "scale", "-d", "rr=3")
        swarm.running("rr", 3)


@pytest.mark.parametrize("order", ["start-first", "stop-first"])
def test_a_rolling_update_loses_no_request(
    anydocker: Docker, swarm: Swarm, probes: dict[str, Any], order: str
) -> None:
    """From outside through a host, and inside through the VIP, every request is answered."""
    anydocker("service", "update", "-d", "--update-order", order, "--update-monitor", "300ms", "web")
    before = {task["ID"] for task in swarm.running("web", 3)}
    inside: list[str] = []
    done = threading.Event()

    def ask() -> None:
        loop = f"timeout 3 wget -qO- http://web/{WHO} || echo lost"
        while not done.is_set():
            inside.extend(swarm.inside(probes["linux-1"], loop, check=False).splitlines())

    asking = threading.Thread(target=ask)
    asking.start()
    url = f"http://{swarm.lab.host('linux-2').address}:8080/{WHO}"
    outside: list[str] = []
    try:
        anydocker("service", "update", "-d", "--force", "web")
        deadline = time.monotonic() + 40
        while before & {task["ID"] for task in swarm.tasks("web")} or (
            swarm.get("/services/web").get("UpdateStatus", {}).get("State") != "completed"
        ):
            outside.append(swarm.curl(url))
            assert time.monotonic() < deadline, swarm.get("/services/web").get("UpdateStatus")
    finally:
        done.set()
        asking.join(20)
    assert before.isdisjoint(task["ID"] for task in swarm.running("web", 3)), "all three were replaced"
    assert len(outside) > 5 and len(inside) > 5
    assert outside.count("") == 0, f"{outside.count('')} of {len(outside)} requests from outside were lost"
    assert "lost" not in inside, f"{inside.count('lost')} of {len(inside)} requests inside were lost"
