"""The packet an ordinary socket asks with, and what it takes for an answer; then the socket itself, over loopback."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.model.paths import PathState
from overlace.network.paths import Path
from overlace.network.probe_message import ECHO, ECHOED, LEAST, answer, parse_message, question
from overlace.network.prober import Prober
from overlace.network.windows.probe import PlainProbeSocket

HERE, THERE = "127.0.0.1", "127.0.0.2"
KIND = 8 + 14 + 20 + 8 + 2  # where the message's kind is


def answered(payload: bytes, source: str) -> bytes:
    """What the other host's program makes of a question."""
    made = bytearray(payload[: KIND - 2 + 24])
    made[KIND] = ECHOED
    made[KIND + 2 : KIND + 6] = socket.inet_aton(source)
    return bytes(made)


@given(st.integers(0, 2**63), st.integers(LEAST, 9000))
def test_a_question_has_the_size_asked_for_and_its_answer_is_known_again(nonce: int, size: int) -> None:
    asked = question(HERE, THERE, 4789, nonce, size)
    assert 28 + len(asked) == size
    assert asked[:8].hex() == "08000000ffffff00" and asked[20:22].hex() == "0800"
    ip = asked[22:42]
    words = sum(int.from_bytes(ip[i : i + 2], "big") for i in range(0, 20, 2))
    assert words % 0xFFFF == 0, "the inner IP header's checksum"
    assert int.from_bytes(ip[2:4], "big") == len(asked) - 22
    found = parse_message(asked[50:], 7)
    assert found is not None and (found.kind, found.source, found.nonce, found.at) == (ECHO, HERE, nonce, 7)
    back = answer(answered(asked, THERE), THERE, 9)
    assert back is not None and (back.source, back.nonce, back.at) == (THERE, nonce, 9)


@given(st.binary(max_size=120))
def test_anything_else_is_no_answer(payload: bytes) -> None:
    assert answer(payload, THERE, 0) is None


def test_an_answer_of_another_host_than_it_says_or_a_question_is_none() -> None:
    asked = question(HERE, THERE, 4789, 1, LEAST)
    assert answer(answered(asked, THERE), HERE, 0) is None
    assert answer(asked, HERE, 0) is None


def test_without_checks_none_is_planned() -> None:
    path = Path("b", THERE, 1500, 0.0, checks=False)
    kinds: set[str] = set()
    for now in range(60):
        for nonce, probe in enumerate(path.plan(float(now))):
            kinds.add(probe.kind)
            path.sent(nonce, probe, float(now))
            path.answered(nonce, 100, float(now))
    assert kinds == {"echo", "size"} and path.report().mtu == 1500 and path.report().fragments == ""


class Answering(asyncio.DatagramProtocol):
    """Another host's program, whose way takes `room` bytes; deaf: it takes none."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.sent is not None
        if 28 + len(data) <= self.room:
            self.sent.sendto(answered(data, THERE), addr)


@pytest.mark.parametrize("room", [1500, 0])
async def test_a_prober_measures_by_an_ordinary_socket_and_hears_silence(room: int) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Answering(room), local_addr=(THERE, 0))
    news: asyncio.Queue[PathState] = asyncio.Queue()

    def hear(told: list[PathState]) -> None:
        for one in told:
            news.put_nowait(one)

    prober = Prober(hear, lambda node: None, checks=False)
    prober.start(PlainProbeSocket(HERE, transport.get_extra_info("sockname")[1]))
    try:
        prober.follow({"b": THERE}, 1500)
        async with asyncio.timeout(40):
            while not ((state := await news.get()).mtu or state.state == "down"):
                pass
        assert (state.state, state.mtu) == (("ok", 1500) if room else ("down", 0))
        assert state.rtt > 0 or not room
    finally:
        await prober.close()
        transport.close()
