"""All or nothing: what the verbs of HNS change, in memory and in the journal, taken back together when one is refused.

Owns the state's changes, in order, the lines and events that wait for the end of a verb, and the one write that keeps
them. Must not know what a document means or whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlace.network.hns.documents import Document, Guid
from overlace.network.hns.events import Event
from overlace.network.hns.journal import Journal, delete_line, put_line
from overlace.network.hns.state import State

Changes = list[tuple[Guid, Document | None]]  # GUID and what was there before, in order


class Ledger:
    """`state`, and every way to change it: `put`, `delete`, `tell`, inside `batch`. Without a folder nothing is kept on
    disk. `host`: the host's own address, as far as documents name it."""

    def __init__(self, folder: Path | None, host: str = "") -> None:
        self.state = State(host)
        self._journal = Journal(folder) if folder is not None else None
        self._changed: dict[Guid, None] = {}
        self._pending: list[bytes] = []
        self._undo: Changes = []
        self._events: list[Event] = []
        self._depth = 0
        if self._journal is not None:
            for d in self._journal.load().values():
                self.state.put(d)
            self._changed = dict.fromkeys(self.state.documents)

    @property
    def changed(self) -> bool:
        """Whether `drain` has something."""
        return bool(self._changed)

    def drain(self) -> list[Guid]:
        """GUIDs created, modified or deleted since the last call."""
        changed, self._changed = list(self._changed), {}
        return changed

    def take_events(self) -> list[Event]:
        """What was told since the last call."""
        events, self._events = self._events, []
        return events

    def put(self, d: Document) -> None:
        before = self.state.documents.get(d.id)
        if before == d:
            return
        self._undo.append((d.id, before))
        self.state.put(d)
        self._note(d.id, put_line(d) if self._journal is not None else b"")

    def delete(self, d: Document) -> None:
        self._undo.append((d.id, d))
        self.state.remove(d.id)
        self._note(d.id, delete_line(d.id))

    def touch(self, guid: Guid) -> None:
        """`drain` has it, though nothing of it changed."""
        self._changed[guid] = None

    def tell(self, event: Event) -> None:
        self._events.append(event)

    def _note(self, guid: Guid, line: bytes) -> None:
        self._changed[guid] = None
        if self._journal is not None:
            self._pending.append(line)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """All inside is kept by one write, or nothing of it: a refusal or a full disk leaves what was."""
        self._depth += 1
        mark, lines, events = len(self._undo), len(self._pending), len(self._events)
        try:
            yield
            if self._depth == 1:
                self._flush()
        except BaseException:
            self._take_back(self._undo[mark:])
            del self._undo[mark:], self._pending[lines:], self._events[events:]
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._undo.clear()

    @contextmanager
    def recording(self) -> Iterator[Changes]:
        """What is changed inside, for `restore`; kept on disk as one write at the end."""
        with self.batch():
            yield self._undo

    def restore(self, changes: Changes) -> None:
        """Take back what `recording` gave, inside it."""
        self._take_back(changes)
        changes.clear()
        self._pending.clear()
        self._events.clear()

    def _take_back(self, changes: Changes) -> None:
        for guid, before in reversed(changes):
            if before is not None:
                self.state.put(before)
            else:
                self.state.remove(guid)
            self._changed[guid] = None

    def _flush(self) -> None:
        """Raises OSError; what was to be written is taken back then."""
        pending = list(self._pending)
        if self._journal is not None and pending:
            documents = self.state.documents
            self._journal.append(pending, documents.values(), len(documents))
        self._pending.clear()
