"""What the agent keeps on disk: its tasks with their last status, and the last network view.

A restarted daemon goes on from here without any manager. Secrets are never written: they come again with the manager.
Owns the file; must not know what the values mean. Written at every change, so that kill -9 loses nothing reported.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from overlace.model.errors import Unavailable
from overlace.model.netview import Entry, NetView
from overlace.model.objects import Task

_encode = msgspec.msgpack.encode
_task = msgspec.msgpack.Decoder(Task)
_entry = msgspec.msgpack.Decoder(Entry)
_SCHEMA = 1


class AgentState:
    """`path` is created with mode 0600; an unreadable or newer file is set aside, since the manager knows it all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._db = self._open()
        except sqlite3.DatabaseError:
            path.replace(path.with_suffix(".unreadable"))
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        self._path.chmod(0o600)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA):
            db.close()
            raise sqlite3.DatabaseError(f"schema {version}")
        db.execute("CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TABLE IF NOT EXISTS view (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
        db.execute(
            "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA user_version={_SCHEMA}")
        return db

    def tasks(self) -> list[Task]:
        return [_task.decode(body) for (body,) in self._db.execute("SELECT body FROM tasks")]

    def put_tasks(self, tasks: Iterable[Task], remove: Iterable[str] = ()) -> None:
        """Raises Unavailable when the disk refuses; nothing has changed then."""
        with self._transaction():
            self._db.executemany("DELETE FROM tasks WHERE id=?", [(i,) for i in remove])
            self._db.executemany("REPLACE INTO tasks VALUES (?,?)", [(t.id, _encode(t)) for t in tasks])

    def view(self) -> NetView:
        row = self._db.execute("SELECT value FROM meta WHERE key='view_revision'").fetchone()
        entries = [_entry.decode(body) for (body,) in self._db.execute("SELECT body FROM view")]
        return NetView(entries, row[0] if row else 0)

    def put_view(self, view: NetView, changed: Iterable[str]) -> None:
        """Write the changed keys of `view`. Raises Unavailable when the disk refuses."""
        put, gone = [], []
        for key in changed:
            entry = view.get(key)
            if entry is None:
                gone.append((key,))
            else:
                put.append((key, _encode(entry)))
        with self._transaction():
            self._db.executemany("DELETE FROM view WHERE key=?", gone)
            self._db.executemany("REPLACE INTO view VALUES (?,?)", put)
            self._db.execute("REPLACE INTO meta VALUES ('view_revision', ?)", (view.revision,))

    def close(self) -> None:
        self._db.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        try:
            self._db.execute("ROLLBACK" if error else "COMMIT")
        except sqlite3.Error as e:
            error = error or e
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise Unavailable(
                f"the agent's state cannot be written: {error}; free some disk space"
            ) from error
