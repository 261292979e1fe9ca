"""The flow log on real packets: what was opened, with the programs' own counts."""

from __future__ import annotations

import socket

import pytest
from datapath_bed import Container, ask_udp, made_bed, network

from overlace.network.vfp.flow_log import FlowLog, Happened, see

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
