"""The resolver on loopback sockets: messages in, messages out."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest

from overlace.model.netview import NetView
from overlace.network.dns import Resolver
from overlace.network.dns_message import parse_query
from overlace.network.resolv_conf import container_resolv_conf, parse_resolv_conf

from .world import ME, endpoint, network, service

NETWORKS = ("back",)
MANY = 60


def view() -> NetView:
    return NetView(
        [
            network("back", 4097, 1),
            service("web", "back", "10.0.1.5"),
            service("many", "back", ""),
            *(endpoint(f"m{i}", "back", ME, f"10.0.1.{i + 10}", "many") for i in range(MANY)),
        ]
    )


class Bench:
    def __init__(self, resolver: Resolver, udp: tuple[str, int], tcp: tuple[str, int]) -> None:
        self.resolver, self.udp_at, self.tcp_at = resolver, udp, tcp

    async def raw(self, data: bytes, wait: float = 6.0) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setblocking(False)
            s.connect(self.udp_at)
            await loop.sock_sendall(s, data)
            return await asyncio.wait_for(loop.sock_recv(s, 65535), wait)

    async def udp(self, query: dns.message.Message) -> dns.message.Message:
        return dns.message.from_wire(await self.raw(query.to_wire()), ignore_trailing=False)

    async def tcp(self, *queries: dns.message.Message) -> list[dns.message.Message]:
        reader, writer = await asyncio.open_connection(*self.tcp_at)
        out = []
        for q in queries:
            wire = q.to_wire()
            writer.write(struct.pack(">H", len(wire)) + wire)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            out.append(dns.message.from_wire(await reader.readexactly(length)))
        writer.close()
        return out


def query(name: str, kind: str = "A", **more: object) -> dns.message.Message:
    return dns.message.make_query(name, kind, **more)  # type: ignore[arg-type]


def addresses(m: dns.message.Message) -> list[str]:
    return [r.to_text() for s in m.answer for r in s]


Make = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Resolver] = []

    async def build(*upstreams: str, ready: bool = True) -> Bench:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for s in (udp, tcp):
            s.setblocking(False)
            s.bind(("127.0.0.1", 0))
        tcp.listen()
        at = udp.getsockname(), tcp.getsockname()
        resolver = Resolver(upstreams)
        if ready:
            resolver.update(view(), None)
        await resolver.serve("t", NETWORKS, udp, tcp)
        made.append(resolver)
        return Bench(resolver, *at)

    yield build
    for r in made:
        await r.close()


class Upstream(asyncio.DatagramProtocol):
    """A nameserver that knows example.org and counts its questions; `truncate`: only over TCP in full."""

    def __init__(
        self, *, rcode: int = 0, truncate: bool = False, delay: float = 0.0, lie: bool = False
    ) -> None:
        self.rcode, self.truncate, self.delay, self.lie = rcode, truncate, delay, lie
        self.asked = 0

    async def start(self) -> str:
        loop = asyncio.get_running_loop()
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", port))
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        self.transport.close()
        self.server.close()

    def reply(self, data: bytes, *, cut: bool) -> bytes:
        m = dns.message.make_response(dns.message.from_wire(data))
        m.set_rcode(dns.rcode.Rcode(self.rcode))
        if cut:
            m.flags |= dns.flags.TC
        elif not self.rcode:
            m.answer.append(dns.rrset.from_text(m.question[0].name, 60, "IN", "A", "192.0.2.7"))
        if self.lie:
            m.id = (m.id + 1) & 0xFFFF
        return m.to_wire()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        asyncio.get_running_loop().call_later(
            self.delay, lambda: self.transport.sendto(self.reply(data, cut=self.truncate), addr)
        )

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        out = self.reply(await reader.readexactly(length), cut=False)
        writer.write(struct.pack(">H", len(out)) + out)
        await writer.drain()
        writer.close()


async def test_a_known_name_is_answered_without_being_kept(make: Make) -> None:
    b = await make()
    for _ in range(2):  # built, then from the cache
        m = await b.udp(query("Web"))
        assert addresses(m) == ["10.0.1.5"] and m.answer[0].ttl == 0
        assert m.flags & dns.flags.RA and m.rcode() == dns.rcode.NOERROR
        assert m.question[0].name.to_text() == "Web."
    m = await b.udp(query("web", "AAAA"))
    assert m.rcode() == dns.rcode.NOERROR and not m.answer
    m = await b.udp(query("5.1.0.10.in-addr.arpa", "PTR"))
    assert addresses(m) == ["web.back."]
    assert (await b.udp(query("9.1.0.10.in-addr.arpa", "PTR"))).rcode() == dns.rcode.NXDOMAIN


async def test_a_change_is_seen_by_the_very_next_query(make: Make) -> None:
    b = await make()
    v = view()
    assert addresses(await b.udp(query("web"))) == ["10.0.1.5"]
    v.put(service("web", "back", "10.0.1.6"))
    b.resolver.update(v, {"service/back/web"})
    assert addresses(await b.udp(query("web"))) == ["10.0.1.6"]
    v.remove("service/back/web")
    b.resolver.update(v, {"service/back/web"})
    assert (await b.udp(query("web"))).rcode() == dns.rcode.NXDOMAIN


async def test_tasks_come_in_random_order(make: Make) -> None:
    random.seed(1)
    b = await make()
    firsts = {addresses(await b.udp(query("tasks.many", use_edns=0, payload=4096)))[0] for _ in range(20)}
    assert len(firsts) > 5


async def test_what_does_not_fit_is_cut_and_whole_over_tcp(make: Make) -> None:
    b = await make()
    m = await b.udp(query("many"))
    assert m.flags & dns.flags.TC and 20 < len(addresses(m)) < MANY
    m = await b.udp(query("many", use_edns=0, payload=1232))
    assert not m.flags & dns.flags.TC and len(addresses(m)) == MANY and m.edns == 0
    whole, again = await b.tcp(query("many"), query("web"))
    assert (
        len(addresses(whole)) == MANY and not whole.flags & dns.flags.TC and addresses(again) == ["10.0.1.5"]
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 11,
        b"\xff" * 40,
        query("web").to_wire()[:-3],
        query("web").to_wire() + b"trailing",
        dns.message.make_response(query("web")).to_wire(),
        # a name that points at itself, then two questions
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",
        b"\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01\x01b\x00\x00\x01\x00\x01",
    ],
    ids=["empty", "zeros", "ones", "cut short", "trailing", "an answer", "loop", "two questions"],
)
async def test_malformed_packets_are_ignored(make: Make, data: bytes) -> None:
    b = await make()
    with pytest.raises(TimeoutError):
        await b.raw(data, wait=0.05)
    assert addresses(await b.udp(query("web"))) == ["10.0.1.5"]


def test_random_bytes_never_raise() -> None:
    rng = random.Random(7)
    good = query("web", use_edns=0).to_wire()
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        parse_query(bytes(data[: rng.randrange(12, len(data) + 1)]))


async def test_without_upstreams_the_answer_comes_at_once(make: Make) -> None:
    b = await make()
    assert (await b.udp(query("nosuch"))).rcode() == dns.rcode.NXDOMAIN
    assert (await b.udp(query("example.org"))).rcode() == dns.rcode.SERVFAIL
    other = query("web")
    other.set_opcode(dns.opcode.NOTIFY)
    assert (await b.udp(other)).rcode() == dns.rcode.NOTIMP
    assert (await b.udp(query("version.bind", "TXT", rdclass="CH"))).rcode() == dns.rcode.REFUSED


async def test_before_the_first_view_a_name_is_not_denied(make: Make) -> None:
    b = await make(ready=False)
    assert (await b.udp(query("web"))).rcode() == dns.rcode.SERVFAIL
    b.resolver.update(view(), None)
    assert addresses(await b.udp(query("web"))) == ["10.0.1.5"]


async def test_foreign_names_are_forwarded_and_ours_are_not(make: Make) -> None:
    up = Upstream()
    b = await make(await up.start())
    q = query("example.org")
    m = await b.udp(q)
    assert addresses(m) == ["192.0.2.7"] and m.id == q.id
    (m,) = await b.tcp(query("example.org"))
    assert addresses(m) == ["192.0.2.7"]
    assert up.asked == 1
    await b.udp(query("web"))
    await b.udp(query("web", "AAAA"))
    assert up.asked == 1
    up.stop()


async def test_a_truncated_upstream_is_asked_over_tcp(make: Make) -> None:
    up = Upstream(truncate=True)
    b = await make(await up.start())
    assert addresses(await b.udp(query("example.org"))) == ["192.0.2.7"]
    up.stop()


async def test_the_next_upstream_is_asked_when_one_fails(make: Make) -> None:
    bad, good = Upstream(rcode=2), Upstream()
    b = await make("127.0.0.1:1", await bad.start(), await good.start())
    assert addresses(await b.udp(query("example.org"))) == ["192.0.2.7"]
    bad.stop()
    good.stop()


async def test_silence_is_servfail_and_holds_up_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.network.dns.UPSTREAM_TIMEOUT", 0.3)
    silent = Upstream(lie=True)  # answers to another question count as none
    b = await make(await silent.start())
    waiting = [asyncio.create_task(b.udp(query(f"x{i}.example.org"))) for i in range(20)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(0.2):
        assert addresses(await b.udp(query("web"))) == ["10.0.1.5"]
    assert {m.rcode() for m in await asyncio.gather(*waiting)} == {dns.rcode.SERVFAIL}
    silent.stop()


async def test_too_many_at_once_are_refused_not_queued(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.network.dns.MAX_FORWARDS", 2)
    slow = Upstream(delay=0.2)
    b = await make(await slow.start())
    answers = await asyncio.gather(*(b.udp(query(f"x{i}.example.org")) for i in range(5)))
    assert sorted(m.rcode() for m in answers) == [0, 0, 2, 2, 2]
    slow.stop()


async def test_one_client_holds_no_more_tcp_connections_than_its_share(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlace.network.dns.TCP_MOST", 3)
    b = await make()
    held = [await asyncio.open_connection(*b.tcp_at) for _ in range(3)]
    more, writer = await asyncio.open_connection(*b.tcp_at)
    assert await asyncio.wait_for(more.read(), 5) == b"", "closed at once, not kept for its time"
    writer.close()
    assert addresses(await b.udp(query("web"))) == ["10.0.1.5"]
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    while b.resolver._tasks:
        await asyncio.wait(b.resolver._tasks)
    [answer] = await b.tcp(query("web"))
    assert addresses(answer) == ["10.0.1.5"], "its share is free again"


async def test_a_client_that_takes_no_answers_is_let_go(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.network.dns.TCP_IDLE", 0.2)
    b = await make()
    _, writer = await asyncio.open_connection(*b.tcp_at, limit=1024)
    wire = query("many").to_wire()
    writer.write((struct.pack(">H", len(wire)) + wire) * 20_000)  # answers of many times that
    async with asyncio.timeout(20):
        while not b.resolver._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await b.resolver.finish()
    writer.transport.abort()


async def test_a_dropped_task_has_no_resolver_any_more(make: Make) -> None:
    b = await make()
    b.resolver.drop("t")
    assert not b.resolver.serving("t")
    await asyncio.sleep(0)
    with pytest.raises((TimeoutError, OSError)):
        await b.raw(query("web").to_wire(), wait=0.1)


def test_resolv_conf_is_dockers() -> None:
    text = "# host\nsearch corp.example lab\nnameserver 192.0.2.1\nnameserver 192.0.2.2 ; second\noptions timeout:1\n"
    servers, search, options = parse_resolv_conf(text)
    assert servers == ["192.0.2.1", "192.0.2.2"]
    assert (
        container_resolv_conf(search, options)
        == "nameserver 127.0.0.11\nsearch corp.example lab\noptions timeout:1 ndots:0\n"
    )
    assert container_resolv_conf([], ["ndots:2"]) == "nameserver 127.0.0.11\noptions ndots:2\n"
