"""A whole swarm whose hosts reach each other over IPv6 alone: the shop behind a published port, names, both families
inside, the tools that look at it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlace.lab import Lab
from overlace.lab.capture import Capture
from overlace.lab.cluster import Cluster
from overlace.lab.shop import image_name, push_images
from overlace.model.errors import InvalidArgument

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
OVERLACE = [sys.executable, "-m", "overlace.cli.main"]
HOSTS = ("linux-1", "linux-2", "linux-3")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """web on hosts 1 and 2, store on host 3, on a network of both families; port 8080 of every host."""
    with Lab.up("tlab6", linux=3, windows=0, managers=1, ipv6_underlay=True) as made:
        push_images(made.registry)
        docker = made.docker
        docker(
            "linux-1",
            "network",
            "create",
            "-d",
            "overlay",
            "--ipv6",
            "--subnet",
            "10.9.0.0/24",
            "--subnet",
            "fd09::/64",
            "shop",
        )
        for service, count, place, more in (
            ("store", 1, "==", ("-e", "CONFIG_FILE=/proc/version", "-e", "SECRET_FILE=/proc/version")),
            ("web", 2, "!=", ("-e", "NEXT=store", "-p", "8080:80")),
        ):
            docker(
                *("linux-1", "service", "create", "-d", "--name", service, "--network", "shop"),
                *("--replicas", str(count), "--constraint", f"node.hostname{place}linux-3"),
                *("-e", "NODE={{.Node.Hostname}}", *more, image_name(made.registry, service)),
            )
        until(
            lambda: [t.state for t in Cluster(made).tasks()] == ["running"] * 3, lambda: Cluster(made).tasks()
        )
        until(lambda: all(get(made, host) for host in HOSTS), lambda: "the shop does not answer")
        yield made


def until(reached: Callable[[], object], found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, found()
        time.sleep(0.1)


def get(lab: Lab, host: str) -> dict[str, Any]:
    url = f"http://{lab.host(host).address}:8080/"
    said = lab.exec("client", "curl", "-s", "--max-time", "5", url, check=False).stdout
    found: dict[str, Any] = json.loads(said) if said else {}
    return found


def ask(lab: Lab, *words: str) -> str:
    run = lab.exec("linux-1", *OVERLACE, *words, check=False)
    assert not run.returncode, run
    return run.stdout


def test_nodes_are_known_by_their_ipv6_addresses(lab: Lab) -> None:
    for host in HOSTS:
        node = json.loads(lab.docker("linux-1", "node", "inspect", host).stdout)[0]
        assert node["Status"]["Addr"] == lab.host(host).six
    shown = json.loads(lab.docker("linux-3", "network", "inspect", "shop").stdout)[0]
    assert {peer["IP"] for peer in shown["Peers"]} <= {lab.host(h).six for h in HOSTS}


def test_the_shop_answers_through_every_host_and_no_tunnel_is_of_ipv4(lab: Lab, tmp_path: Path) -> None:
    capture = Capture(lab, tmp_path / "shop.pcap")
    answers = [get(lab, host) for host in HOSTS for _ in range(4)]
    packets = capture.stop()
    chains = [[hop["service"] for hop in a["chain"]] for a in answers]
    assert all(chain == ["web", "store"] for chain in chains), "web finds store by name"
    assert len({a["chain"][0]["address"] for a in answers}) == 2, "both tasks answer"
    hosts = {lab.host(h).six for h in HOSTS}
    assert packets and {p.outer_source for p in packets} | {p.outer_target for p in packets} <= hosts
    asked = [p for p in packets if p.what.startswith("GET")]
    assert {p.inner_source for p in asked} >= {lab.host("client").address}, "the client's own address"


def test_containers_take_what_fits_beside_the_longer_header(lab: Lab) -> None:
    health = json.loads(ask(lab, "network", "health", "shop", "--format", "json"))
    assert health["ContainerMtu"] == 1430 and not health["Problems"]
    assert {p["State"] for p in health["Paths"]} == {"ok"} and {h["Address"] for h in health["Hosts"]} == {
        lab.host(h).six for h in HOSTS
    }


def test_a_trace_goes_through_the_tunnel_and_so_does_a_packet(lab: Lab) -> None:
    said = ask(lab, "trace", "web.1", "store.1", "--port", "80")
    assert f"> {lab.host('linux-3').six} UDP 4789" in said and "1430 bytes fit" in said
    live = ask(lab, "trace", "web.1", "store.1", "--port", "80", "--live")
    assert "encapsulated" in live and "delivered" in live


def test_flows_name_the_hosts(lab: Lab) -> None:
    get(lab, "linux-3")
    assert (
        lab.host("linux-3").six
        in ask(lab, "vfp", "flows") + lab.exec("linux-2", *OVERLACE, "vfp", "flows").stdout
    )


def test_an_ipv4_host_is_told_why_it_cannot_join(lab: Lab) -> None:
    lab.docker("linux-2", "swarm", "leave")
    try:
        token = lab.docker("linux-1", "swarm", "join-token", "-q", "worker").stdout.strip()
        join = ("swarm", "join", "--token", token, "--data-path-addr", lab.host("linux-2").address)
        refused = lab.docker("linux-2", *join, f"[{lab.host('linux-1').six}]:2377", check=False)
        assert f"is IPv4, and {lab.host('linux-1').six} of linux-1 is IPv6" in refused.stderr
    finally:
        lab.docker(
            "linux-2",
            *join[:4],
            "--advertise-addr",
            lab.host("linux-2").six,
            f"[{lab.host('linux-1').six}]:2377",
        )


def test_a_lab_over_ipv6_has_no_windows_hosts() -> None:
    with pytest.raises(InvalidArgument, match="their HNS tunnels over IPv4 alone"):
        Lab.up("tlab7", linux=1, windows=1, ipv6_underlay=True)
