"""The store on disk: the memory store with SQLite written through before anything is acknowledged.

Owns the file, its schema and its durability. A group of commits (commits.py) is one transaction by one writer
thread (WAL, synchronous=FULL). When the disk refuses, nothing has changed, on disk or in memory. Must not know
policy.

The file belongs to one process at a time (SQLite's exclusive lock) and is readable by its owner alone: it
holds the CA's key and the secrets."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from overlace.model.errors import FailedPrecondition, Internal, Unavailable
from overlace.store.base import Batch, Change
from overlace.store.commits import DECODERS, GroupCommits, encode, last_of_each
from overlace.store.memory import Clock, MemoryView, State
from overlace.store.watch import HistoryWatch

SCHEMA = 1
_APPLICATION_ID = 0x4F564C43  # "OVLC", so that another program's file is not mistaken for ours

_TABLES = """
CREATE TABLE objects (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('revision', 0);
"""
_PUT = "INSERT INTO objects VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET data = excluded.data"
_DELETE = "DELETE FROM objects WHERE kind = ? AND id = ?"


class SqliteStore:
    """`overlace.store.base.Store` in the file `path`. Opening reads it whole.

    Raises FailedPrecondition (made by a newer overlace, or not ours), Internal (damaged), Unavailable (held
    by another process, or the disk refuses)."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock = time.time_ns) -> None:
        self._path = Path(path)
        self._db = _open(self._path)
        try:
            self._state = _load(self._db, self._path)
        except BaseException:
            self._db.close()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._commits = GroupCommits(self._state, clock, self._keep)
        self._closed = False

    def view(self) -> MemoryView:
        return self._state.view()

    async def commit(self, changes: Sequence[Change]) -> int:
        if self._closed:
            raise Unavailable("the store is closed")
        return await self._commits.commit(changes)

    def watch(self, since: int | None = None) -> HistoryWatch:
        return HistoryWatch(self._state.history, self._state.revision if since is None else since)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._commits.finish()
        self._state.history.close()
        await asyncio.get_running_loop().run_in_executor(self._writer, self._db.close)
        self._writer.shutdown()

    async def _keep(self, batches: Sequence[Batch]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._write, batches)
        except Exception as error:
            raise Unavailable(f"the store cannot write {self._path}: {error}; nothing was changed") from error

    def _write(self, batches: Sequence[Batch]) -> None:
        """In the writer thread: all batches, one transaction, on the disk when it returns."""
        revision = batches[-1].revision
        final = last_of_each(batches)
        puts = [(kind, id, encode(new)) for (kind, id), new in final.items() if new is not None]
        deletes = [key for key, new in final.items() if new is None]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_DELETE, deletes)
            self._db.executemany(_PUT, puts)
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'revision'", (revision,))
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # A COMMIT may fail after the point of no return; what the file says counts.
            if _revision(self._db) != revision:
                raise


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)  # SQLite gives its -wal file the mode of the database
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"cannot open the store {path}: {error}") from error
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN EXCLUSIVE")
        _ensure_schema(db, path)
        db.execute("COMMIT")
        return db
    except sqlite3.OperationalError as error:
        db.close()
        if "locked" in str(error) or "busy" in str(error):
            raise Unavailable(
                f"the store {path} is held by another process: is another daemon running on this data root?"
            ) from error
        raise Unavailable(f"cannot open the store {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise _damaged(path, str(error)) from error
    except BaseException:
        db.close()
        raise


def _ensure_schema(db: sqlite3.Connection, path: Path) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    empty = not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    if empty and application == 0:
        for statement in filter(None, (s.strip() for s in _TABLES.split(";"))):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
    elif application != _APPLICATION_ID:
        raise FailedPrecondition(f"{path} is a SQLite file of another program, not an overlace store")
    elif version > SCHEMA:
        raise FailedPrecondition(
            f"the store {path} has schema {version}, this overlace knows up to {SCHEMA}:"
            " use the overlace that wrote it, or restore a copy from before the upgrade"
        )


def _load(db: sqlite3.Connection, path: Path) -> State:
    try:
        findings = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if findings != ["ok"]:
            raise _damaged(path, "; ".join(findings))
        state = State(_revision(db))
        for kind, id, data in db.execute("SELECT kind, id, data FROM objects ORDER BY kind, id"):
            decode = DECODERS.get(kind)
            if decode is None:
                raise _damaged(path, f"object {id} has unknown kind {kind!r}")
            try:
                state.load([decode(data)])
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise _damaged(path, f"{kind} {id} cannot be read: {error}") from error
        return state
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _revision(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the revision is missing")
    return int(row[0])


def _damaged(path: Path, why: str) -> Internal:
    return Internal(
        f"the store {path} is damaged: {why}; restore a copy of it, or move it away to start empty"
    )
