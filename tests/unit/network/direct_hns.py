"""An HNS without sockets or a DLL between: what the Windows driver calls, answered at once, cut where a test says.

Owns the calls' Python side as windows/library.py has them. `cut` makes the nth call from now fail, before or after it
took effect, as a daemon that is killed there leaves it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.documents import Document
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.state import State
from overlace.network.hns.versions import LATEST, HnsVersion
from overlace.network.windows.errors import failure
from overlace.network.windows.library import NULL_GUID, Hcn, Notify

NO_SERVER = 0x800706BA
NULL = "00000000-0000-0000-0000-000000000000"


class Killed(Exception):
    """The daemon is no more."""


class DirectLibrary:
    def __init__(self) -> None:
        self.missing: set[str] = set()

    def has(self, name: str) -> bool:
        return name not in self.missing


class DirectHcn:
    """Stands for `Hcn`. `away`: the service does not run."""

    def __init__(self, address: str, version: HnsVersion = LATEST) -> None:
        self.service = HnsService(facts=HostFacts(address, version))
        self.calls = HnsCalls(self.service)
        self.library = DirectLibrary()
        self.away = False
        self.count = 0
        self._cut: tuple[int, bool] | None = None
        self.on_cut: Callable[[], None] = lambda: None
        self.on_register: Callable[[], None] = lambda: None
        self.was_cut = False
        self._callbacks: dict[int, Notify] = {}

    def restrict(self, check: Callable[[Document, State], None]) -> None:
        """Refuse what `check` refuses from now on."""
        facts = self.service._facts
        assert facts is not None
        self.service._facts = msgspec.structs.replace(facts, check=check)

    def cut(self, number: int, *, after: bool) -> None:
        """Fail at the `number`th call from now (from 0)."""
        self._cut = (self.count + number, after)

    def mend(self) -> None:
        self._cut, self.was_cut = None, False

    def _killed(self) -> Killed:
        if not self.was_cut:
            self.was_cut = True
            self.on_cut()
        return Killed()

    def restart(self) -> None:
        """As a restarted service: handles are gone, objects are not; whoever registered hears of it."""
        callbacks, self._callbacks = self._callbacks, {}
        self.calls = HnsCalls(self.service)
        for notify in callbacks.values():
            notify(0x01000000, 0, "{}")

    def _call(
        self, operation: str, handle: int = 0, guid: str = NULL, document: str | None = None
    ) -> tuple[int, str]:
        number, self.count = self.count, self.count + 1
        at, after = self._cut or (-1, False)
        if at >= 0 and (number > at or (number == at and not after)):
            raise self._killed()  # and nothing runs after its end
        if self.away:
            raise failure(NO_SERVER, operation)
        reply = self.calls.call(operation, handle, guid, document)
        self.service.drain()
        self.service.take_events()
        if number == at:
            raise self._killed()
        if reply.hr:
            record = msgspec.json.decode(reply.record or "{}")
            raise failure(reply.hr, f"Hcn{operation}", record.get("Error", ""))
        return reply.handle, reply.result or ""

    def enumerate(self, kind: str, query: str = "") -> list[uuid.UUID]:
        return [uuid.UUID(g) for g in msgspec.json.decode(self._call(f"Enumerate{kind}s", document=query)[1])]

    def create(self, kind: str, settings: str, guid: uuid.UUID = NULL_GUID, network: int = 0) -> int:
        return self._call(f"Create{kind}", network, str(guid), settings)[0]

    def open(self, kind: str, guid: uuid.UUID) -> int:
        return self._call(f"Open{kind}", 0, str(guid))[0]

    def modify(self, kind: str, handle: int, settings: str) -> None:
        self._call(f"Modify{kind}", handle, document=settings)

    def query(self, kind: str, handle: int, query: str = "") -> str:
        return self._call(f"Query{kind}", handle, document=query)[1]

    def delete(self, kind: str, guid: uuid.UUID) -> None:
        self._call(f"Delete{kind}", 0, str(guid))

    def close(self, kind: str, handle: int) -> None:
        self._call(f"Close{kind}", handle)

    @contextmanager
    def opened(self, kind: str, guid: uuid.UUID) -> Iterator[int]:
        handle = self.open(kind, guid)
        try:
            yield handle
        finally:
            self.close(kind, handle)

    def hns_call(self, method: str, path: str, body: str = "") -> str:
        return self._call("HNSCall", document=f"{method} {path}\n{body}")[1]

    version = Hcn.version

    def register(self, notify: Notify, network: int = 0) -> int:
        if self.away:
            raise failure(NO_SERVER, "HcnRegisterServiceCallback")
        number = max(self._callbacks, default=0) + 1
        self._callbacks[number] = notify
        self.on_register()
        return number

    def unregister(self, handle: int) -> None:
        self._callbacks.pop(handle, None)
