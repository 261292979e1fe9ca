"""The served protocol against clients that err, stop halfway, or come a thousand at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from overlace.network.hns import calls
from overlace.network.hns import server as served
from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.documents import HostComputeNetwork
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.journal import JOURNAL, Journal
from overlace.network.hns.server import MAX_DOCUMENT, Server
from overlace.network.hns.service import HnsService, HostFacts

NULL = "00000000-0000-0000-0000-000000000000"
NAT = '{"Name":"n%s","Type":"NAT","SchemaVersion":{"Major":2,"Minor":0}}'


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server(HnsCalls(HnsService(facts=HostFacts("192.0.2.1"))), 0)
    await made.open()
    yield made
    await made.close()


async def exchange(server: Server, data: bytes, *, half_close: bool = False) -> tuple[str, bytes]:
    """Send, read to the end; the reply's head and the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, rest = answer.partition(b"\n")
    return head.decode(), rest


def code_of(head: str, rest: bytes) -> int:
    hr, handle, result, record = head.split()
    assert len(hr) == 8 and handle == "0" and result == "-1" and int(record) == len(rest)
    assert json.loads(rest)["ErrorCode"] == int(hr, 16)
    return int(hr, 16)


async def test_a_call_and_its_answer_byte_for_byte(server: Server) -> None:
    document = (NAT % "é").encode()
    head, rest = await exchange(server, f"CreateNetwork 0 {NULL} {len(document)}\n".encode() + document)
    assert (head, rest) == ("00000000 1 -1 -1", b"")
    head, rest = await exchange(server, b"EnumerateNetworks 0 - -1\n")
    assert head == f"00000000 0 {len(rest)} -1" and len(json.loads(rest)) == 1
    head, rest = await exchange(server, b"QueryNetwork 1 - 0\n", half_close=True)
    assert json.loads(rest)["Name"] == "né"
    head, rest = await exchange(server, b"CloseNetwork 1 - -1\r\n")
    assert head == "00000000 0 -1 -1"
    assert code_of(*await exchange(server, b"CloseNetwork 1 - -1\n")) == Code.INVALID_HANDLE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\n", "OP HANDLE GUID N"),
        (b"EnumerateNetworks\n", "OP HANDLE GUID N"),
        (b"EnumerateNetworks 0 -  -1\n", "OP HANDLE GUID N"),
        (b"EnumerateNetworks -3 - -1\n", "HANDLE '-3'"),
        (b"EnumerateNetworks x - -1\n", "HANDLE 'x'"),
        (b"EnumerateNetworks 0 - x\n", "N 'x'"),
        (b"EnumerateNetworks 0 - -2\n", "N '-2'"),
        (b"EnumerateNetworks 0 - 99999999999999999999999\n", "N '9999"),
        (f"CreateNetwork 0 - {MAX_DOCUMENT + 1}\n".encode() + b"x" * 100_000, "at most 4194304"),
        (b"EnumerateNetwork 0 - -1\n", "operation 'EnumerateNetwork'"),
        (b"CreateNetworks 0 - -1\n", "operation"),
        (b"DeleteNetwork 0 - -1\n", "name the network"),
        (b"\xff\xfe 0 - -1\n", "not ASCII"),
        (b"A" * 70_000, "longer than 256"),
        (b"A" * 300 + b" 0 - -1\n", "longer than 256"),
        (b"HNSCall 0 - 3\nGET", "METHOD /PATH"),
    ],
)
async def test_a_malformed_request_is_answered(server: Server, data: bytes, words: str) -> None:
    head, rest = await exchange(server, data)
    assert code_of(head, rest) == Code.BAD_PARAMETER and words in json.loads(rest)["Error"]


@pytest.mark.parametrize("data", [b"", b"Enum", b"CreateNetwork 0 - 50\n{"])
async def test_a_client_that_stops_halfway_ends_only_itself(server: Server, data: bytes) -> None:
    head, rest = await exchange(server, data, half_close=True)
    if data:
        assert code_of(head, rest) == Code.BAD_PARAMETER
    else:
        assert (head, rest) == ("", b"")
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.transport.abort()  # a reset in the middle
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert (await exchange(server, b"EnumerateNetworks 0 - -1\n"))[1] == b"[]"


async def test_a_guid_that_is_none_is_said(server: Server) -> None:
    assert code_of(*await exchange(server, b"OpenNetwork 0 nonsense -1\n")) == Code.GUID_CONVERSION_FAILURE


async def test_bytes_that_are_no_text_are_said(server: Server) -> None:
    assert code_of(*await exchange(server, b"CreateNetwork 0 - 2\n\xff\xfe")) == Code.INVALID_JSON
    deep = b"[" * 100_000
    assert (
        code_of(*await exchange(server, f"CreateNetwork 0 - {len(deep)}\n".encode() + deep))
        == Code.INVALID_JSON
    )


async def test_a_slow_client_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PATIENCE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"CreateNetwork 0 - 100000\n{")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_thousand_clients_at_once_all_get_their_answer(server: Server) -> None:
    reader_writers = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(400)]
    asked = [
        exchange(server, b"CreateNetwork 0 - %d\n%s" % (len(b := (NAT % i).encode()), b)) for i in range(600)
    ]
    answers = await asyncio.gather(*asked)
    good = [head for head, _ in answers if head.startswith("00000000")]
    refused = {code_of(head, rest) for head, rest in answers if not head.startswith("00000000")}
    assert len(good) == 16 and refused == {Code.INVALID_SUBNET}  # the NAT pool has 16 prefixes
    for i, (reader, writer) in enumerate(reader_writers):
        writer.write(b"OpenNetwork 0 %s -1\n" % NULL.encode() if i % 2 else b"EnumerateNetworks 0 - -1\n")
        head, _, _ = (await reader.read()).partition(b"\n")
        assert head.startswith(b"80070490" if i % 2 else b"00000000")
        writer.close()
        await writer.wait_closed()


async def test_too_many_connections_are_told_to_come_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MAX_CONNECTIONS", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"RegisterServiceCallback 0 - -1\n")  # its connection stays
    assert await reader.readline() == b"00000000 0 -1 -1\n"
    assert code_of(*await exchange(server, b"EnumerateNetworks 0 - -1\n")) == Code.SERVER_TOO_BUSY
    writer.close()
    await writer.wait_closed()


async def test_listeners_hear_what_happens_and_the_service_end() -> None:
    server = Server(HnsCalls(HnsService(facts=HostFacts("192.0.2.1"))), 0)
    await server.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"RegisterServiceCallback 0 - -1\n")
    assert await reader.readline() == b"00000000 0 -1 -1\n"
    await exchange(server, b"CreateNamespace 0 - 2\n{}")
    kind, size = (await reader.readline()).split()
    assert kind == b"5" and json.loads(await reader.readexactly(int(size)))["Flags"] == 0
    await server.close()
    assert (await reader.readline()).split()[0] == str(0x01000000).encode()
    writer.close()
    await writer.wait_closed()


def test_leaked_handles_are_bounded_and_the_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_HANDLES", 10)
    hns = HnsCalls(HnsService(facts=HostFacts("192.0.2.1")))
    first = hns.call("CreateNamespace", 0, "-", "{}").handle
    guid = json.loads(hns.call("EnumerateNamespaces", 0, "-", None).result or "")[0]
    opened = []
    for _ in range(50):
        opened.append(hns.call("OpenNamespace", 0, guid, None).handle)
        assert hns.call("QueryNamespace", first, "-", None).hr == 0  # in use: it stays
    live = [h for h in opened if hns.call("QueryNamespace", h, "-", None).hr == 0]
    assert live == opened[-9:]


class Unwilling:
    """A data path that refuses one thing."""

    def __init__(self, hns: HnsService) -> None:
        self.hns, self.broken, self.seen = hns, True, [set[str]()]

    async def follow(self) -> None:
        self.hns.drain()
        self.seen.append(set(self.hns.documents))
        if self.broken and any(d.name == "bad" for d in self.hns.documents.values()):
            raise OSError(12, "no room in the map")


async def test_what_the_data_path_refuses_is_taken_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    service = HnsService(tmp_path, facts=HostFacts("192.0.2.1"))
    enforcer = Unwilling(service)
    server = Server(HnsCalls(service), 0, enforcer)
    assert (await server.call("CreateNetwork", 0, "-", NAT % 1)).hr == 0
    before, journal = dict(service.documents), (tmp_path / JOURNAL).read_bytes()
    reply = await server.call("CreateNetwork", 0, "-", '{"Name":"bad"}')
    assert reply.hr == Code.DEGRADED_OPERATION and "no room in the map" in (reply.record or "")
    assert reply.handle == 0 and service.documents == before
    assert enforcer.seen[-1] == set(before)  # and the data path was brought back
    assert (tmp_path / JOURNAL).read_bytes() == journal
    enforcer.broken = False
    assert (await server.call("CreateNetwork", 0, "-", '{"Name":"bad"}')).hr == 0


async def test_a_mistake_of_ours_takes_nothing_and_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    service = HnsService(facts=HostFacts("192.0.2.1"))
    server = Server(HnsCalls(service), 0)
    monkeypatch.setattr(service, "_happened", lambda *_: 1 // 0)
    reply = await server.call("CreateNetwork", 0, "-", NAT % 1)
    assert (
        reply.hr == Code.UNEXPECTED and "ZeroDivisionError" in (reply.record or "") and not service.documents
    )


async def test_a_state_that_cannot_be_written_takes_nothing(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    service = HnsService(tmp_path, facts=HostFacts("192.0.2.1"))
    server = Server(HnsCalls(service), 0)
    assert (await server.call("CreateNetwork", 0, "-", NAT % 1)).hr == 0
    before = dict(service.documents)

    def full(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(Journal, "append", full)
    for operation, guid, document in (
        ("CreateNetwork", "-", NAT % 2),
        ("DeleteNetwork", next(iter(before)), None),
    ):
        reply = await server.call(operation, 0, guid, document)
        assert reply.hr == Code.REGKEY_FAILURE and "disk full" in (reply.record or "")
        assert service.documents == before
    monkeypatch.undo()
    assert (await server.call("CreateNetwork", 0, "-", NAT % 2)).hr == 0
    assert HnsService(tmp_path, facts=HostFacts("192.0.2.1")).documents == service.documents


def test_a_damaged_journal_is_kept_aside_and_what_hangs_together_lives(tmp_path) -> None:  # type: ignore[no-untyped-def]
    facts = HostFacts("192.0.2.1")
    service = HnsService(tmp_path, facts=facts)
    hns = HnsCalls(service)
    nets = [hns.call("CreateNetwork", 0, "-", NAT % i).handle for i in range(2)]
    for net in nets:
        assert hns.call("CreateEndpoint", net, "-", "{}").hr == 0
    ids = json.loads(hns.call("EnumerateEndpoints", 0, "-", None).result or "")
    path = tmp_path / JOURNAL
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([b'{"kind":"network","put":{"ID"', *lines[1:]]))
    again = HnsService(tmp_path, facts=facts)
    assert ids[0] not in again.documents and ids[1] in again.documents  # without its network it is nothing
    assert len(again.documents) == 2 and (tmp_path / (JOURNAL + ".damaged")).read_bytes().startswith(
        b'{"kind"'
    )
    assert HnsService(tmp_path, facts=facts).documents == again.documents


@pytest.mark.parametrize(
    ("version", "document", "code"),
    [
        ((9, 0), '{"Name":"n","Policies":[{"Type":"HostRoute"}],%s}', Code.INVALID_POLICY_TYPE),
        (
            (10, 2),
            '{"Name":"n","Policies":[{"Type":"VxlanPort","Settings":{"Port":4789}}],%s}',
            Code.INVALID_POLICY_TYPE,
        ),
    ],
)
def test_an_older_hns_refuses_what_came_later(version: tuple[int, int], document: str, code: Code) -> None:
    subnet = (
        '"Type":"Overlay","Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24",'
        '"Policies":[{"Type":"VSID","Settings":{"IsolationId":4096}}],'
        '"Routes":[{"NextHop":"10.1.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}]'
    )
    old = HnsCalls(HnsService(facts=HostFacts("192.0.2.1", version)))
    assert old.call("CreateNetwork", 0, "-", document % subnet).hr == code
    new = HnsCalls(HnsService(facts=HostFacts("192.0.2.1")))
    assert new.call("CreateNetwork", 0, "-", document % subnet).hr == 0


def test_load_balancers_change_from_15_4() -> None:
    for version, hr in (((15, 3), Code.NOT_IMPLEMENTED), ((15, 4), 0)):
        hns = HnsCalls(HnsService(facts=HostFacts("192.0.2.1", version)))
        net = hns.call("CreateNetwork", 0, "-", NAT % 1).handle
        hns.call("CreateEndpoint", net, "-", "{}")
        ep = json.loads(hns.call("EnumerateEndpoints", 0, "-", None).result or "")
        port = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 81}
        body = json.dumps({"HostComputeEndpoints": ep, "PortMappings": [port]})
        lb = hns.call("CreateLoadBalancer", 0, "-", body).handle
        assert hns.call("ModifyLoadBalancer", lb, "-", body).hr == hr


def test_our_own_driver_gets_no_outputs_it_did_not_ask_for() -> None:
    plain = HnsService()
    made = plain.create(HostComputeNetwork(name="n"))
    assert isinstance(made, HostComputeNetwork) and not made.mac_pool.ranges and not made.subnets
    assert plain.take_events() == []
    with pytest.raises(HcnError):
        plain.get(HostComputeNetwork, NULL)
