"""What the agent keeps on disk: its tasks with their last status, and the last network view.

A restarted daemon goes on from here without any manager. Secrets are never written: they come again with the manager.
Owns the file; must not know what the values mean. Written at every change, so that kill -9 loses nothing reported.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import Unavailable
from overlace.model.netview import Entry, NetView
from overlace.model.objects import Task

log = structlog.get_logger(__name__)
_encode = msgspec.msgpack.encode
_task = msgspec.msgpack.Decoder(Task)
_entry = msgspec.msgpack.Decoder(Entry)
_SCHEMA = 1


class AgentState:
    """`path` is created with mode 0600; an unreadable or newer file is set aside, since the manager knows it all.

    Raises Unavailable when the disk refuses: a full disk does not make the file unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._open_readable()
        except (OSError, sqlite3.Error) as e:
            raise _refused(e) from e

    def _open_readable(self) -> sqlite3.Connection:
        try:
            db = self._open()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as e:
            return self._open_anew(e)
        try:  # damage shows only where it is read
            _tasks(db)
            _view(db)
        except sqlite3.OperationalError:
            db.close()
            raise
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as e:
            db.close()
            return self._open_anew(e)
        return db

    def _open_anew(self, why: Exception) -> sqlite3.Connection:
        aside = self._path.with_suffix(".unreadable")
        log.warning("the agent's state is unreadable and set aside", path=str(aside), error=str(why))
        for end in ("-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        self._path.replace(aside)
        return self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        self._path.chmod(0o600)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA):
            raise sqlite3.DatabaseError(f"schema {version}")
        db.execute("CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TABLE IF NOT EXISTS view (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
        db.execute(
            "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"
        )
        if version != _SCHEMA:
            db.execute(f"PRAGMA user_version={_SCHEMA}")

    def tasks(self) -> list[Task]:
        return _tasks(self._db)

    def put_tasks(self, tasks: Iterable[Task], remove: Iterable[str] = ()) -> None:
        """Raises Unavailable when the disk refuses; nothing has changed then."""
        with self._transaction():
            self._db.executemany("DELETE FROM tasks WHERE id=?", [(i,) for i in remove])
            self._db.executemany("REPLACE INTO tasks VALUES (?,?)", [(t.id, _encode(t)) for t in tasks])

    def view(self) -> NetView:
        return _view(self._db)

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


def _tasks(db: sqlite3.Connection) -> list[Task]:
    return [_task.decode(body) for (body,) in db.execute("SELECT body FROM tasks")]


def _view(db: sqlite3.Connection) -> NetView:
    row = db.execute("SELECT value FROM meta WHERE key='view_revision'").fetchone()
    entries = [_entry.decode(body) for (body,) in db.execute("SELECT body FROM view")]
    return NetView(entries, row[0] if row else 0)


def _refused(error: Exception) -> Unavailable:
    return Unavailable(f"the agent's state cannot be written: {error}; free some disk space")


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as e:
            raise _refused(e) from e

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        try:
            self._db.execute("ROLLBACK" if error else "COMMIT")
        except sqlite3.Error as e:
            error = error or e
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise _refused(error) from error
