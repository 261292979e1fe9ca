"""The resolver of containers, at 127.0.0.11: names of the cluster from the view, everything else forwarded.

Owns the sockets it is given and the answers' cache. What a name means is names.py's, messages are dns_message.py's. Must
not make sockets inside sandboxes (the data path does) nor know HNS. Queries it forwards leave from the daemon's
own network namespace, those for nameservers of the service's own from the task's. Source: RFC 7766 (TCP).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import msgspec

from overlace.model.netview import NetView
from overlace.network.dns_message import Query, Wire, build, parse_query
from overlace.network.names import Answer, Names, is_reverse, lookup

UPSTREAM_TIMEOUT = 2.0  # seconds per upstream and attempt
TOTAL_TIMEOUT = 4.0  # under the 5 s clients wait
BAD_FOR = 5.0  # seconds an upstream that did not answer stands last
MAX_FORWARDS = 512  # at once; more are refused with SERVFAIL instead of starving the daemon of descriptors
TCP_IDLE = 10.0  # seconds to send a question, or to take an answer
TCP_MOST = 100  # connections of one container at once: the resolver's descriptors are everybody's
CACHE_LIMIT = 4096  # answers per set of networks


class Upstream(msgspec.Struct, frozen=True):
    address: str
    port: int = 53

    @classmethod
    def parse(cls, text: str) -> Upstream:
        """`ADDRESS` or, for IPv4, `ADDRESS:PORT`."""
        if text.count(":") == 1:
            address, _, port = text.partition(":")
            return cls(address, int(port))
        return cls(text)


class OwnUpstreams(msgspec.Struct, frozen=True):
    """The nameservers a service asks for; they are asked from the task's sandbox, as Docker does."""

    servers: tuple[Upstream, ...]
    open_socket: Callable[[bool], Awaitable[socket.socket]]  # True: TCP


class Asker(msgspec.Struct, frozen=True):
    """Who asks: the networks whose names it sees, and nameservers of its own."""

    networks: tuple[str, ...]
    own: OwnUpstreams | None = None


AskerOf = Callable[[str], Asker | None]  # by source address; None: nobody we answer


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver, asker_of: AskerOf) -> None:
        self.resolver, self.asker_of = resolver, asker_of
        self.transport: asyncio.DatagramTransport | None = None
        self.late: socket.socket | None = None  # to answer on when another reads the questions

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # no isinstance: asyncio's own transport is no subclass of the abstract one before 3.12
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.resolver.on_udp(self, data, addr)

    def error_received(self, exc: Exception) -> None:
        pass  # a client that closed its socket before our answer

    def send(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.late is not None:
            with contextlib.suppress(OSError):
                self.late.sendto(data, addr)
        elif self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(data, addr)


class _Reply(asyncio.DatagramProtocol):
    """Waits for the one answer of an upstream with our id."""

    def __init__(self, ident: bytes, done: asyncio.Future[bytes]) -> None:
        self.ident, self.done = ident, done

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[:2] == self.ident and len(data) >= 12 and data[2] & 0x80 and not self.done.done():
            self.done.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)


class _Served:
    def __init__(
        self, transport: asyncio.DatagramTransport, listener: _Listener, server: asyncio.Server
    ) -> None:
        self.transport, self.listener, self.server = transport, listener, server


class Resolver:
    """Answers on sockets inside sandboxes; one per host."""

    def __init__(self, upstreams: Sequence[str] = ()) -> None:
        self._upstreams = [Upstream.parse(u) for u in upstreams]
        self._bad: dict[Upstream, float] = {}
        self._names = Names()
        self._ready = False
        self._served: dict[str, _Served] = {}
        self._cache: dict[tuple[str, ...], dict[bytes, Wire]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forwards = 0

    @property
    def upstreams(self) -> list[str]:
        """Addresses of the nameservers that are asked for what is not ours."""
        return [upstream.address for upstream in self._upstreams]

    def configure(self, upstreams: Sequence[str]) -> None:
        self._upstreams = [Upstream.parse(u) for u in upstreams]

    @property
    def ready(self) -> bool:
        """Whether it was told what there is."""
        return self._ready

    # -- what it knows ---------------------------------------------------------------------------------------

    def update(self, view: NetView, changed: set[str] | None) -> None:
        """Follow the view; answers of the networks concerned are forgotten."""
        touched = self._names.update(view, changed)
        self._ready = True
        if touched:
            for networks in [n for n in self._cache if touched.intersection(n)]:
                del self._cache[networks]

    def answer(self, networks: tuple[str, ...], query: Query, own: OwnUpstreams | None = None) -> Wire | None:
        """The finished answer, or None when the query must be forwarded."""
        if query.opcode != 0:
            return build(query, Answer(True), int(dns.rcode.NOTIMP))
        if not query.in_class:
            return build(query, Answer(True), int(dns.rcode.REFUSED))
        found = lookup(self._names, networks, query.name, query.qtype)
        if found.known:
            missing = query.qtype == "PTR" and not found.names and is_reverse(query.name.lower())
            return build(query, found, int(dns.rcode.NXDOMAIN) if missing else 0)
        if "." not in query.name and not self._ready:
            return build(query, found, int(dns.rcode.SERVFAIL))  # the view is not there yet: ask again
        if not self._upstreams and own is None:
            rcode = dns.rcode.NXDOMAIN if "." not in query.name else dns.rcode.SERVFAIL
            return build(query, found, int(rcode))
        return None

    # -- sockets ---------------------------------------------------------------------------------------------

    async def serve(
        self,
        key: str,
        networks: tuple[str, ...],
        udp: socket.socket,
        tcp: socket.socket,
        own: OwnUpstreams | None = None,
    ) -> None:
        """Answer on these sockets for a task on `networks`; owns them from here on. Replaces earlier ones of
        `key`."""
        asker = Asker(networks, own)
        await self.serve_many(key, lambda address: asker, udp, tcp)

    async def serve_many(self, key: str, asker_of: AskerOf, udp: socket.socket, tcp: socket.socket) -> None:
        """The same for everyone `asker_of` knows by address; others are refused."""
        self.drop(key)
        loop = asyncio.get_running_loop()
        transport, listener = await loop.create_datagram_endpoint(lambda: _Listener(self, asker_of), sock=udp)

        talks: Counter[str] = Counter()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talk = asyncio.current_task()
            assert talk is not None
            self._tasks.add(talk)
            address = (writer.get_extra_info("peername") or ("",))[0]  # None: it has gone again
            client = "" if address.startswith("127.") else address  # a sandbox has all of 127.0.0.0/8
            talks[client] += 1
            try:
                asker = asker_of(address)
                if asker is not None and talks[client] <= TCP_MOST:
                    await self._on_tcp(asker, reader, writer)
            finally:
                talks[client] -= 1
                if not talks[client]:
                    del talks[client]
                self._tasks.discard(talk)
                writer.close()

        try:
            server = await asyncio.start_server(connected, sock=tcp)
        except BaseException:
            transport.close()
            raise
        self._served[key] = _Served(transport, listener, server)

    def serving(self, key: str) -> bool:
        return key in self._served

    def drop(self, key: str) -> None:
        served = self._served.pop(key, None)
        if served is not None:
            served.transport.close()
            served.server.close()

    def release(self, key: str) -> tuple[socket.socket, socket.socket]:
        """Read no more questions of `key`; its sockets (UDP, TCP), open, for another to go on with. What is being
        answered is answered. Raises OSError when there are no descriptors left."""
        served = self._served[key]
        udp = served.transport.get_extra_info("socket").dup()  # may fail: nothing has changed then
        try:
            tcp = served.server.sockets[0].dup()
        except OSError:
            udp.close()
            raise
        del self._served[key]
        served.listener.late = udp
        served.transport.close()
        served.server.close()
        return udp, tcp

    async def finish(self) -> None:
        """Until everything that was asked is answered and no client is connected."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        for key in list(self._served):
            self.drop(key)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def on_udp(self, listener: _Listener, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) < 17:
            return
        asker = listener.asker_of(addr[0])
        cache = self._cache.get(asker.networks) if asker is not None and asker.own is None else None
        if cache is not None:
            hit = cache.get(data[2:])
            if hit is not None:
                listener.send(hit.encode(data[:2], tcp=False), addr)
                return
        query = parse_query(data)
        if query is None:
            return
        if asker is None:
            refused = build(query, Answer(True), int(dns.rcode.REFUSED))
            listener.send(refused.encode(data[:2], tcp=False), addr)
            return
        wire = self.answer(asker.networks, query, asker.own)
        if wire is not None:
            if asker.own is None:
                self._remember(asker.networks, data, wire)
            listener.send(wire.encode(data[:2], tcp=False), addr)
            return
        task = asyncio.get_running_loop().create_task(
            self._forward_udp(listener, asker.own, data, addr, query)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remember(self, networks: tuple[str, ...], data: bytes, wire: Wire) -> None:
        if not self._ready:
            return
        cache = self._cache.setdefault(networks, {})
        if len(cache) >= CACHE_LIMIT:
            cache.clear()
        cache[data[2:]] = wire

    async def _forward_udp(
        self,
        listener: _Listener,
        own: OwnUpstreams | None,
        data: bytes,
        addr: tuple[str, int],
        query: Query,
    ) -> None:
        reply = await self.forward(data, query, tcp=False, own=own)
        if len(reply) > query.limit:
            # came over TCP: keep header and question, and send the client there too
            cut = build(query, Answer(True)).encode(data[:2], tcp=False)
            reply = cut[:2] + bytes((cut[2] | 0x02,)) + cut[3:]
        listener.send(reply, addr)

    async def _on_tcp(self, asker: Asker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                query = parse_query(data)
                if query is None:
                    return
                wire = self.answer(asker.networks, query, asker.own)
                if wire is not None:
                    reply = wire.encode(data[:2], tcp=True)
                else:
                    reply = await self.forward(data, query, tcp=True, own=asker.own)
                writer.write(struct.pack(">H", len(reply)) + reply)
                async with asyncio.timeout(TCP_IDLE):
                    await writer.drain()
        except asyncio.IncompleteReadError:
            return
        except (TimeoutError, OSError):
            writer.transport.abort()  # closing would wait for one that does not read

    # -- forwarding ------------------------------------------------------------------------------------------

    async def forward(
        self, data: bytes, query: Query, *, tcp: bool, own: OwnUpstreams | None = None
    ) -> bytes:
        """The upstreams' answer under the client's id, or SERVFAIL."""
        failed = build(query, Answer(False), int(dns.rcode.SERVFAIL)).encode(data[:2], tcp=tcp)
        if self._forwards >= MAX_FORWARDS:
            return failed
        self._forwards += 1
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT):
                return await self._ask_in_turn(data, own, tcp=tcp) or failed
        except TimeoutError:
            return failed
        finally:
            self._forwards -= 1

    async def _ask_in_turn(self, data: bytes, own: OwnUpstreams | None, *, tcp: bool) -> bytes | None:
        now = asyncio.get_running_loop().time
        refused: bytes | None = None
        upstreams = self._upstreams if own is None else own.servers
        for upstream in sorted(upstreams, key=lambda u: self._bad.get(u, 0.0) > now()):
            ident = struct.pack(">H", random.getrandbits(16))
            try:
                async with asyncio.timeout(UPSTREAM_TIMEOUT):
                    if tcp:
                        reply = await _ask_tcp(upstream, ident + data[2:], own)
                    else:
                        reply = await _ask_udp(upstream, ident + data[2:], own)
                        if reply[2] & 0x02:  # truncated
                            try:
                                reply = await _ask_tcp(upstream, ident + data[2:], own)
                            except (OSError, asyncio.IncompleteReadError):
                                pass  # the truncated one still tells the client to try TCP
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                if own is None:  # where one task cannot reach it others may
                    self._bad[upstream] = now() + BAD_FOR
                continue
            if own is None:
                self._bad.pop(upstream, None)
            reply = data[:2] + reply[2:]
            if reply[3] & 0x0F in (2, 5):  # SERVFAIL, REFUSED: another one may know
                refused = reply
                continue
            return reply
        return refused


async def _connected(upstream: Upstream, own: OwnUpstreams, *, tcp: bool) -> socket.socket:
    made = await own.open_socket(tcp)
    try:
        await asyncio.get_running_loop().sock_connect(made, (upstream.address, upstream.port))
    except BaseException:
        made.close()
        raise
    return made


async def _ask_udp(upstream: Upstream, data: bytes, own: OwnUpstreams | None = None) -> bytes:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    where: dict[str, Any] = {"remote_addr": (upstream.address, upstream.port)}
    if own is not None:
        where = {"sock": await _connected(upstream, own, tcp=False)}
    transport, _ = await loop.create_datagram_endpoint(lambda: _Reply(data[:2], done), **where)
    try:
        transport.sendto(data)
        return await done
    finally:
        transport.close()


async def _ask_tcp(upstream: Upstream, data: bytes, own: OwnUpstreams | None = None) -> bytes:
    if own is None:
        reader, writer = await asyncio.open_connection(upstream.address, upstream.port)
    else:
        reader, writer = await asyncio.open_connection(sock=await _connected(upstream, own, tcp=True))
    try:
        writer.write(struct.pack(">H", len(data)) + data)
        await writer.drain()
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        reply = await reader.readexactly(length)
        if length < 12 or reply[:2] != data[:2]:
            raise OSError(f"upstream {upstream.address}: an answer to another question")
        return reply
    finally:
        writer.close()
