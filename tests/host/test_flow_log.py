"""The flow log on real packets: what was opened, with the programs' own counts."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from datapath_bed import Container, ask_udp, connect, echo, line, made_bed, network

from overlace.network.vfp.flow_log import IDLE, FlowLog, Happened, see
from overlace.network.vfp.flows import close_both
from overlace.network.vfp.tables import Backend, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(60)]
NET = network(4097, "10.0.1.0/24")


def test_a_question_and_its_answer_are_two_flows() -> None:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        mine = one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        bed.serve(two.path, 53, "two", socket.SOCK_DGRAM)
        log = FlowLog()

        def look() -> list[Happened]:
            return log.look([see(flow) for flow in a.call("flows")])

        assert look() == []
        answer = " ".join(ask_udp(one.path, "10.0.1.6", 53, size=100)) + "\n"
        out, back = sorted(look(), key=lambda h: str(h.facts["verdict"]), reverse=True)
        assert (out.event, out.packets, out.bytes) == ("opened", 1, 128)
        assert (back.event, back.packets, back.bytes) == ("opened", 1, 28 + len(answer))
        assert out.facts == {
            "port": mine.endpoint_id,
            "protocol": "udp",
            "src": "10.0.1.5",
            "sport": back.facts["dport"],
            "dst": "10.0.1.6",
            "dport": 53,
            "verdict": "encapsulate",
            "vni": 4097,
            "to": b.address,
        }
        assert (back.facts["verdict"], back.facts["from"]) == ("deliver", b.address)
        assert look() == []


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_the_end_of_a_tcp_connection_is_told(end: str) -> None:
    """By what closed it, for both directions, on the sender's host and whether or not it was to a service."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        bed.frontend(Frontend(4097, "10.0.1.9", 0, 0, (Backend(4097, "10.0.1.6", 80),)))
        bed.serve(two.path, 80, "two")
        for address in ("10.0.1.6", "10.0.1.9"):
            log = FlowLog()
            log.look([])
            a.call("flows")  # who looks at flows sees connections from their first packet on
            with connect(one.path, address, 80) as connection:
                line(connection)
                assert echo(connection, b"x" * 5000)
                if end == "rst":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            told: list[Happened] = []
            deadline = time.monotonic() + IDLE / 2
            while sum(h.event == "ended" for h in told) < 2:
                assert time.monotonic() < deadline, told
                flows = [
                    f for f in close_both(a.call("flows"))
                    if address in (f.came.dst, f.went.src) or f.service == f"{address}:80"
                ]  # fmt: skip
                told += log.look([see(flow) for flow in flows])
                time.sleep(0.2)
            ended = [h for h in told if h.event == "ended"]
            assert {h.why for h in ended} == {end} and all(h.bytes > 5000 for h in ended)


@pytest.mark.parametrize("address", ["10.0.1.6", "10.0.1.9", "10.0.1.7"])
def test_a_connection_that_is_refused_ends_by_that(address: str) -> None:
    """At once, not by silence: at a container's own address on another host and on this one, and at a service's."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two, near = Container(a, "one"), Container(b, "two"), Container(a, "near")
        one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        near.join(NET, "10.0.1.7")
        bed.frontend(Frontend(4097, "10.0.1.9", 0, 0, (Backend(4097, "10.0.1.6", 80),)))
        log = FlowLog()
        log.look([])
        a.call("flows")
        with pytest.raises(ConnectionRefusedError):
            connect(one.path, address, 80)
        told: list[Happened] = []
        deadline = time.monotonic() + IDLE / 2
        while not any(h.event == "ended" for h in told):
            assert time.monotonic() < deadline, told
            told += log.look([see(flow) for flow in close_both(a.call("flows")) if flow.came.protocol == 6])
            time.sleep(0.2)
        assert [(h.event, h.why, h.packets) for h in told] == [("opened", "", 1), ("ended", "rst", 1)]
