"""Published ports against sockets of the host's own programs: who was there first keeps the port.

Owns what is kept back for that, at the addresses of the socket and until it is gone, and saying so. The eBPF programs see
a packet before the host's stack does: without this a service published on 22 would take new SSH logins on every node.
Must not know maps.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set

import msgspec
import structlog

from overlace.model.family import is_six
from overlace.model.findings import Finding
from overlace.model.paths import Notice
from overlace.model.protocols import WORDS
from overlace.network.host_watch import every
from overlace.network.hostports import HostPort, at, holder_of
from overlace.network.notices import Notices
from overlace.network.vfp.tables import HOST4, HOST6, Delta, Frontend, Key, Tables

LOOK_SECONDS = 30.0
log = structlog.get_logger(__name__)


class Clash(msgspec.Struct, frozen=True):
    """A published port on which a program of the host listens, too; `kept_back`: the program has it."""

    address: str  # of the port; "": every one of the host
    port: str  # as 22/tcp
    socket: HostPort
    inode: int
    kept_back: bool
    held: tuple[str, ...] = ()  # of a port at every address: those the sockets have; (): all
    container: str = ""  # no socket: a container of this host has the port at that address


def plan_clashes(
    fronts: Iterable[Frontend], served: Set[Key], sockets: Mapping[HostPort, int]
) -> dict[Key, Clash]:
    """Of published ports; one that is served already goes on."""
    by_port: dict[tuple[int, int], list[HostPort]] = {}
    for port in sockets:
        by_port.setdefault(port[1:], []).append(port)
    found: dict[Key, Clash] = {}
    for e in fronts:
        own = (at(e.address), e.protocol, e.port)
        there = [x for x in by_port.get(own[1:], ()) if not x[0] or _meets(e, x[0])]
        if there:
            other = min(there)  # one at every address is the first
            held = tuple(sorted(x[0] for x in there)) if other[0] and not own[0] else ()
            found[e.key] = Clash(own[0], _name(e), other, sockets[other], e.key not in served, held)
    return found


def plan_hidden(fronts: Mapping[Key, Frontend], containers: Mapping[HostPort, str]) -> dict[Key, Clash]:
    """Ports of services at every address that a container has at one: `containers` are those, and whose they are."""
    found: dict[Key, Clash] = {}
    for port, name in containers.items():
        address, protocol, number = port
        key = ("frontend", 0, HOST6 if is_six(address) else HOST4, protocol, number)
        if key in fronts and ("frontend", 0, *port) in fronts:
            found["hidden", *port] = Clash("", _name(fronts[key]), port, 0, False, (address,), name)
    return found


def _meets(front: Frontend, address: str) -> bool:
    own = at(front.address)
    return own == address if own else is_six(front.address) == is_six(address)


def _name(front: Frontend) -> str:
    return f"{front.port}/{WORDS.get(front.protocol, front.protocol)}"


def plan_stand_ins(front: Frontend, clash: Clash, own: Iterable[str]) -> list[Frontend]:
    """What serves a port of every address where no socket has it, by this host's addresses: the programs have a row for
    one address or for all, and none that leaves one out."""
    if not clash.held:
        return []
    six = is_six(front.address)
    return [
        msgspec.structs.replace(front, address=a) for a in own if is_six(a) == six and a not in clash.held
    ]


def explain_clash(clash: Clash, holder: str) -> str:
    if clash.container:
        return (
            f"port {clash.port} is published, and container {clash.container} of this host has it at {clash.socket[0]}: "
            "it answers there, the service at the other addresses; publish another port, or remove the container"
        )
    who = holder or "a program"
    where = ", ".join(clash.held) or clash.socket[0] or "every address"
    if clash.kept_back and clash.held:
        return (
            f"port {clash.port} is published, and {who} of this host listens there at {where}: it keeps the port at that "
            "address until it ends, the service has it at the others; publish another port, or stop it"
        )
    if clash.kept_back:
        return (
            f"port {clash.port} is published, and {who} of this host listens there at {where}: it keeps the port here "
            "until it ends; publish another port, or stop it"
        )
    return (
        f"port {clash.port} is published, and {who} of this host has begun to listen there at {where}: new connections "
        "go to the service; have it listen elsewhere, or publish another port"
    )


class PortGuard:
    """Of one host. `listening`: where its programs have sockets, and their inodes; `own`: addresses of the host;
    `containers`: ports that containers have at one address, and whose."""

    def __init__(
        self,
        listening: Callable[[], Mapping[HostPort, int]],
        apply: Callable[[Delta], Awaitable[None]],
        notices: Notices,
        own: Callable[[], Iterable[str]] = tuple,
        containers: Callable[[], Mapping[HostPort, str]] = dict,
    ) -> None:
        self._containers = containers
        self._listening = listening
        self._apply = apply
        self._notices = notices
        self._served: dict[Key, Frontend] = {}
        self._back: dict[Key, Frontend] = {}
        self._own = own
        self._instead: dict[Key, Frontend] = {}  # of what is kept back at some addresses: at the others
        self._told: dict[Key, tuple[Clash, str]] = {}
        self._running: asyncio.Task[None] | None = None

    async def open(self, tables: Tables, differed: Delta) -> None:
        """After a start: `differed` is what the data path had not served before."""
        fronts = {e.key: e for e in _fronts(tables)}
        self._served, self._back, self._told, self._instead = dict(fronts), {}, {}, {}
        fresh = {e.key for e in _fronts(differed.put)}
        if fresh:
            clashes = plan_clashes(fronts.values(), fronts.keys() - fresh, self._listening())
            self._keep_back({key: fronts[key] for key, clash in clashes.items() if clash.kept_back})
            self._tell(clashes)
            if self._back:
                await self._apply(self._stand_in(clashes, Delta((), tuple(self._back))))
        self._running = asyncio.get_running_loop().create_task(
            every(LOOK_SECONDS, self.look, "the host's sockets cannot be read")
        )

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    def _keep_back(self, fronts: Mapping[Key, Frontend]) -> None:
        for key, e in fronts.items():
            self._served.pop(key, None)
            self._back[key] = e

    def _hidden(self) -> dict[Key, Clash]:
        return plan_hidden(self._served | self._back, self._containers())

    def _stand_in(self, clashes: Mapping[Key, Clash], delta: Delta) -> Delta:
        """The change and what it takes for the service to be where no socket is. `clashes`: of all that is kept back."""
        before, self._instead = self._instead, {}
        if any(clashes[key].held for key in self._back):
            own = tuple(self._own())
            planned = (s for key, e in self._back.items() for s in plan_stand_ins(e, clashes[key], own))
            self._instead = {s.key: s for s in planned if s.key not in self._served}
        put = [s for key, s in self._instead.items() if before.get(key) != s]
        gone = [key for key in before if key not in self._instead and key not in self._served]
        if not put and not gone:
            return delta
        entries = {e.key: e for e in (*delta.put, *put)}
        remove = dict.fromkeys(key for key in (*delta.remove, *gone) if key not in entries)
        return Delta(tuple(entries.values()), tuple(remove))

    def passed(self, delta: Delta) -> Delta:
        """The change without what is kept back."""
        for key in delta.remove:
            self._served.pop(key, None)
            self._back.pop(key, None)
            self._told.pop(key, None)
        fronts = {e.key: e for e in _fronts(delta.put)}
        new = {key: e for key, e in fronts.items() if key not in self._served}
        asked = {**self._back, **new} if new else {}
        clashes = plan_clashes(asked.values(), self._served.keys(), self._listening()) if asked else {}
        for key, e in fronts.items():
            self._back.pop(key, None)
            self._served[key] = e
        self._keep_back({key: fronts[key] for key in clashes if key in new})
        self._tell(
            {key: clash for key, clash in clashes.items() if key in new} | (self._hidden() if new else {})
        )
        if any(key in clashes for key in new):
            delta = Delta(tuple(e for e in delta.put if e.key not in clashes), delta.remove)
        if not self._back and not self._instead:
            return delta
        known = {key: clash for key, (clash, _) in self._told.items()}
        return self._stand_in({**known, **clashes}, delta)

    def tables(self, tables: Tables) -> Tables:
        """All of them without what is kept back."""
        if not self._back:
            return tables
        return Tables([*(e for e in tables if e.key not in self._back), *self._instead.values()])

    async def look(self) -> None:
        """What is free by now is served; what has begun to listen is told of."""
        if not self._served and not self._back and not self._told:
            return
        sockets = await asyncio.to_thread(self._listening)
        clashes = plan_clashes([*self._served.values(), *self._back.values()], self._served.keys(), sockets)
        told = clashes | self._hidden()
        for key in self._told.keys() - told.keys():
            clash, _ = self._told.pop(key)
            log.info("a published port is the service's alone again", port=clash.port)
        self._tell(told)
        free = {key: e for key, e in self._back.items() if key not in clashes}
        for key, e in free.items():
            del self._back[key]
            self._served[key] = e
        if change := self._stand_in(clashes, Delta(tuple(free.values()), ())):
            await self._apply(change)

    def _tell(self, clashes: Mapping[Key, Clash]) -> None:
        """Each once, both families' as one."""
        for key, clash in clashes.items():
            before = self._told.get(key)
            if before is not None and (before[0].socket, before[0].kept_back, before[0].held) == (
                clash.socket,
                clash.kept_back,
                clash.held,
            ):
                continue
            holder = f"container {clash.container}" if clash.container else holder_of(clash.inode)
            text = explain_clash(clash, holder)
            known = text in self.texts()
            self._told[key] = (clash, text)
            if known:
                continue
            facts = {
                "node": platform.node(),
                "port": clash.port,
                "socket": f"{clash.socket[0] or '*'}:{clash.socket[2]}",
                "holder": holder,
                "what": text,
            }
            self._notices.put(Notice(action="port_conflict", id=clash.port, attributes=facts))

    def findings(self) -> list[Finding]:
        """The same for who examines this host."""
        found = {text: clash for clash, text in self._told.values()}
        return [
            Finding(
                what=text,
                remedy="see `ss -lnp` on that host",
                about=clash.held or ((clash.address,) if clash.address else ()),
                port=clash.port,
                mild=not clash.kept_back,
            )
            for text, clash in found.items()
        ]

    def texts(self) -> list[str]:
        """What is in each other's way now."""
        return list(dict.fromkeys(text for _, text in self._told.values()))


def _fronts(entries: Iterable[object]) -> Iterable[Frontend]:
    """Published ports."""
    return (e for e in entries if isinstance(e, Frontend) and not e.vni)
