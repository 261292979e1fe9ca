"""Published ports and the host's own sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import msgspec

from overlace.network.hostports import HostPort, holder_of, listening
from overlace.network.notices import Notices
from overlace.network.port_guard import PortGuard, plan_clashes
from overlace.network.vfp.tables import HOST4, HOST6, Backend, Delta, Entry, Frontend, Tables

SSH, SSH6, WEB = Frontend(0, HOST4, 6, 22), Frontend(0, HOST6, 6, 22), Frontend(0, HOST4, 6, 8080)
VIP = Frontend(4097, "10.0.1.2", 6, 22)


class Kernel:
    """What is programmed, and the sockets of the host."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.sockets: dict[HostPort, int] = {}
        self.looked = 0
        self.notices = Notices()
        self.guard = PortGuard(
            self._listening, self._apply, self.notices, lambda: self.own, lambda: self.containers
        )
        self.containers: dict[HostPort, str] = {}
        self.own = ["127.0.0.1", "192.0.2.7", "192.0.2.8", "2001:db8::7"]

    def _listening(self) -> dict[HostPort, int]:
        self.looked += 1
        return self.sockets

    async def _apply(self, delta: Delta) -> None:
        self.tables.apply(delta)

    async def put(self, *entries: Entry, remove: Iterable[Entry] = ()) -> None:
        await self._apply(self.guard.passed(Delta(entries, tuple(e.key for e in remove))))

    def served(self) -> set[Frontend]:
        return {e for e in self.tables if isinstance(e, Frontend) and not e.vni}

    def said(self) -> list[str]:
        return [notice.id for _, notice in self.notices.since(0)]


def test_who_is_in_the_way() -> None:
    sockets = {("", 6, 22): 1, ("127.0.0.1", 6, 8080): 2, ("192.0.2.7", 17, 53): 3}
    one = Frontend(0, "192.0.2.8", 17, 53)
    found = plan_clashes([SSH, WEB, one], {WEB.key}, sockets)
    assert {k: (c.port, c.inode, c.kept_back) for k, c in found.items()} == {
        SSH.key: ("22/tcp", 1, True),
        WEB.key: ("8080/tcp", 2, False),
    }


async def test_a_program_that_was_there_first_keeps_its_port() -> None:
    k = Kernel()
    k.sockets = {("", 6, 22): 0}
    await k.put(SSH, SSH6, WEB, VIP)
    assert k.served() == {WEB} and k.tables.get(VIP.key) == VIP, "a VIP is nothing of the host's"
    assert k.said() == ["22/tcp"], "both families are one"
    assert [t.partition(",")[0] for t in k.guard.texts()] == ["port 22/tcp is published"]
    assert [(f.port, f.mild) for f in k.guard.findings()] == [("22/tcp", False)], "a trace ends there"
    other = Frontend(0, HOST4, 6, 22, (Backend(4096, "10.0.0.9", 80),))
    await k.put(other)
    await k.guard.look()
    assert k.served() == {WEB} and len(k.said()) == 1
    desired = Tables([other, SSH6, WEB, VIP])
    assert {e.key for e in k.guard.tables(desired)} == {WEB.key, VIP.key}, "nor by comparing everything"
    k.sockets = {}
    await k.guard.look()
    assert k.served() == {other, SSH6, WEB} and not k.guard.texts(), "with what its backends are now"


async def test_a_program_that_comes_later_is_told_of_and_the_service_goes_on() -> None:
    k = Kernel()
    await k.put(SSH)
    looked = k.looked
    await k.put(Frontend(0, HOST4, 6, 22, (Backend(4096, "10.0.0.9", 80),)))
    assert k.looked == looked, "an update of what is served asks nobody"
    k.sockets = {("", 6, 22): 0}
    await k.guard.look()
    assert len(k.served()) == 1 and k.said() == ["22/tcp"] and "has begun to listen" in k.guard.texts()[0]
    assert [(f.port, f.mild) for f in k.guard.findings()] == [("22/tcp", True)]
    await k.guard.look()
    assert k.said() == ["22/tcp"]
    await k.put(remove=[SSH])
    assert not k.served() and not k.guard.texts()


async def test_a_port_that_is_given_back_is_not_kept_back() -> None:
    k = Kernel()
    k.sockets = {("", 6, 22): 0}
    await k.put(SSH)
    await k.put(remove=[SSH])
    k.sockets = {}
    await k.guard.look()
    assert not k.served() and not k.guard.texts()


async def test_after_a_restart_what_was_served_goes_on_and_what_was_not_is_asked_about() -> None:
    k = Kernel()
    k.sockets = {("", 6, 22): 0, ("", 6, 8080): 0}
    k.tables = Tables([SSH, WEB])
    try:
        await k.guard.open(k.tables, Delta((SSH,), ()))
        assert k.served() == {WEB}
        assert k.said() == ["8080/tcp", "22/tcp"] or k.said() == ["22/tcp", "8080/tcp"]
    finally:
        await k.guard.close()


def test_the_program_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = listening()[("127.0.0.1", 6, server.getsockname()[1])]
        assert "(pid " in holder_of(inode)
    assert holder_of(0) == ""


async def test_a_program_at_one_address_keeps_that_one_alone() -> None:
    k = Kernel()
    k.sockets = {("127.0.0.1", 6, 22): 0}

    def where() -> set[str]:
        assert {e.backends for e in k.served()} <= {backends}
        return {e.address for e in k.served()}

    backends: tuple[Backend, ...] = ()
    await k.put(SSH, SSH6)
    assert where() == {HOST6, "192.0.2.7", "192.0.2.8"}, "the outside reaches the service"
    [text] = k.guard.texts()
    assert "at 127.0.0.1: it keeps the port at that address" in text
    assert {e.address for e in k.guard.tables(Tables([SSH, SSH6]))} == where()  # type: ignore[union-attr]
    backends = (Backend(4096, "10.0.0.9", 80),)
    later = msgspec.structs.replace(SSH, backends=backends)
    later6 = msgspec.structs.replace(SSH6, backends=backends)
    await k.put(later, later6)
    assert where() == {HOST6, "192.0.2.7", "192.0.2.8"}, "with what its backends are now"
    k.own.append("192.0.2.9")
    await k.guard.look()
    assert where() == {HOST6, "192.0.2.7", "192.0.2.8", "192.0.2.9"}
    k.sockets = {("192.0.2.7", 6, 22): 0, ("2001:db8::7", 6, 22): 0}
    await k.guard.look()
    assert where() == {HOST6, "127.0.0.1", "192.0.2.8", "192.0.2.9"}, "what is served goes on"
    container = Frontend(0, "192.0.2.8", 6, 22, backends)
    await k.put(container)
    await k.guard.look()
    await k.put(remove=[container])
    assert where() == {HOST6, "127.0.0.1", "192.0.2.8", "192.0.2.9"}, "again the service's"
    k.sockets = {}
    await k.guard.look()
    assert k.served() == {later, later6} and not k.guard.texts()
    k.sockets = {("192.0.2.7", 6, 8080): 0}
    await k.put(WEB)
    await k.put(remove=[WEB])
    assert k.served() == {later, later6}


async def test_a_container_that_hides_a_service_at_one_address_is_told_of() -> None:
    k = Kernel()
    at = Frontend(0, "192.0.2.7", 6, 8080)
    k.containers = {
        ("192.0.2.7", 6, 8080): "box",
        ("192.0.2.7", 6, 22): "other",
        ("192.0.2.7", 17, 8080): "udp",
    }
    await k.put(at)
    assert not k.guard.texts(), "one alone hides nothing"
    await k.put(WEB)
    assert k.served() == {at, WEB} and k.said() == ["8080/tcp"]
    assert "container box of this host has it at 192.0.2.7" in k.guard.texts()[0]
    await k.guard.look()
    assert k.said() == ["8080/tcp"]
    k.containers = {}
    await k.put(remove=[at, WEB])
    await k.guard.look()
    assert not k.guard.texts()


async def test_a_trace_ends_at_the_addresses_a_program_has_and_at_no_other() -> None:
    k = Kernel()
    k.sockets = {("127.0.0.1", 6, 8080): 0}
    await k.put(WEB)
    assert [(f.port, f.about, f.mild) for f in k.guard.findings()] == [("8080/tcp", ("127.0.0.1",), False)]
