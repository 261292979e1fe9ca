"""The store on etcd: the memory store with an etcd cluster behind it, written by one manager at a time.

Owns the layout of the keys, what guards a write, and how the other managers follow. Must not know policy, nor how the
leader is chosen: `lead` is told the etcd revision at which this manager's leader key was made, the fence. Every write
is one etcd transaction that holds only while that very key exists and the store's revision is the one this manager
knows, so a leader that was cut off can write nothing, however late its packets arrive.

    overlace/leader             who leads (election.py)
    overlace/objects/KIND/ID    an object, MessagePack
    overlace/revision           the store's revision, decimal: written with the last part of each commit
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import structlog

from overlace.model.errors import Internal, InvalidArgument, NoLeader, Unavailable
from overlace.model.objects import Node, Object, Task
from overlace.store.base import Batch, Change, Event, Put
from overlace.store.commits import DECODERS, GroupCommits, encode, last_of_each
from overlace.store.etcd.client import (
    RESOURCE_EXHAUSTED,
    EtcdClient,
    EtcdError,
    KeyValue,
    created_at,
    delete,
    get,
    has_value,
    put,
)
from overlace.store.memory import Clock, MemoryView, State
from overlace.store.watch import HistoryWatch

log = structlog.get_logger(__name__)
LEADER = "overlace/leader"
OBJECTS = "overlace/objects/"
REVISION = "overlace/revision"
_END = REVISION + "\0"  # objects and revision, not the leader: what followers watch
# etcd's own gateway takes no message above 4 MiB; the member is started with limits that fit these (member.py)
MAX_OBJECT = 5 << 19  # bytes
MAX_PART = 2 << 20  # bytes of one transaction; what is bigger goes in several, visible with the last
MAX_OPERATIONS = 5000  # of one transaction
_PAUSE = (0.1, 2.0)  # seconds between attempts, first and last

Operation = dict[str, Any]
_REVISION_KEY = put(REVISION, b"")["request_put"]["key"]


def object_key(kind: str, id: str) -> str:
    return f"{OBJECTS}{kind}/{id}"


def plan_parts(batches: Sequence[Batch]) -> list[list[Operation]]:
    """The operations these batches come to, in parts that fit one transaction each; the last writes the revision."""
    parts: list[list[Operation]] = [[]]
    size = 0
    for (kind, id), new in last_of_each(batches).items():
        value = b"" if new is None else encode(new)
        if size + len(value) > MAX_PART or len(parts[-1]) >= MAX_OPERATIONS:
            parts.append([])
            size = 0
        parts[-1].append(delete(object_key(kind, id)) if new is None else put(object_key(kind, id), value))
        size += len(value)
    parts[-1].append(put(REVISION, b"%d" % batches[-1].revision))
    return parts


class EtcdStore:
    """`overlace.store.base.Store` over the member behind `client`. It follows until `lead`, and again after `follow`.

    `on_fenced` is called when a write finds that another manager leads."""

    def __init__(self, client: EtcdClient, *, clock: Clock = time.time_ns) -> None:
        self._client = client
        self._state = State(0)
        self._read_at = 0  # etcd's revision the state is of, while following
        self._pending: list[KeyValue] = []  # parts of a commit whose last part has not come yet
        self._fence = 0
        self._written = b""  # the revision key's value; empty: there is none
        self._commits = GroupCommits(self._state, clock, self._write, check_sizes)
        self._follower: asyncio.Task[None] | None = None
        self._closed = False
        self.on_fenced: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, client: EtcdClient, *, clock: Clock = time.time_ns) -> EtcdStore:
        """What this member has, with or without a quorum. Raises EtcdError, Internal (unreadable objects)."""
        store = cls(client, clock=clock)
        await store._reload(serializable=True)
        store._follow()
        return store

    # -- the store -------------------------------------------------------------------------------------------

    def view(self) -> MemoryView:
        return self._state.view()

    def watch(self, since: int | None = None) -> HistoryWatch:
        return HistoryWatch(self._state.history, self._state.revision if since is None else since)

    async def commit(self, changes: Sequence[Change]) -> int:
        if self._closed:
            raise Unavailable("the store is closed")
        if not self._fence:
            raise NoLeader("this manager does not lead")
        return await self._commits.commit(changes)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._stop_following()
        if self._fence:
            await self._commits.finish()
        else:
            await self._commits.stop(NoLeader("this manager leads no longer"))
        self._state.history.close()

    # -- leading and following -------------------------------------------------------------------------------

    async def lead(self, fence: int) -> None:
        """Be the one that writes: everything written before is in the view when this returns. Raises EtcdError."""
        await self._stop_following()
        try:
            await self._reload(serializable=False)
        except BaseException:
            self._follow()
            raise
        self._fence = fence

    async def follow(self) -> None:
        """Write no more. A commit in hand fails; whether etcd has it, the view shows as soon as etcd tells."""
        self._fence = 0
        await self._commits.stop(NoLeader("this manager leads no longer"))
        self._read_at = 0  # unknown: the first thing a follower does is read all
        self._follow()

    @property
    def leading(self) -> bool:
        return self._fence != 0

    def _follow(self) -> None:
        if not self._closed and self._follower is None:
            self._follower = asyncio.create_task(self._keep_up(), name="follow etcd")

    async def _stop_following(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def _keep_up(self) -> None:
        pause, told = _PAUSE[0], ""
        while True:
            try:
                if not self._read_at:
                    await self._reload(serializable=True)
                async for events in self._client.watch(OBJECTS, _END, self._read_at):
                    pause = _PAUSE[0]
                    for event in events:
                        self._observe(event)
            except EtcdError as e:
                if e.message != told:
                    log.info("not following etcd, will read all of it again", reason=e.message)
                told = e.message
                self._read_at = 0
            except Exception:
                log.exception("following etcd failed, will read all of it again")
                self._read_at = 0
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])

    def _observe(self, change: KeyValue) -> None:
        self._read_at = max(self._read_at, change.mod_revision)
        if change.key != REVISION:
            self._pending.append(change)
            return
        pending, self._pending = self._pending, []
        revision = int(change.value)
        if change.deleted or revision <= self._state.revision:
            raise Internal(f"the store's revision went back to {change.value.decode()}")
        last = {p.key: p for p in pending}  # a commit begun by a leader that died may have been begun again
        events = []
        for key in dict.fromkeys(p.key for p in pending):
            kind, id = key.removeprefix(OBJECTS).split("/", 1)
            old = self._state.get(kind, id)
            new = None if last[key].deleted else _decode(last[key])
            if old is not None or new is not None:
                events.append(Event(kind=kind, id=id, old=cast("Object | None", old), new=new))
        self._written = change.value
        self._state.skip_to(revision - 1)  # commits that were written together
        self._state.apply(Batch(revision=revision, events=tuple(events)))

    async def _reload(self, *, serializable: bool) -> None:
        at, found = await self._client.range(OBJECTS, _END, serializable=serializable)
        self._pending = []
        self._written = b""
        objects = []
        for kv in found:
            if kv.key == REVISION:
                self._written = kv.value
            else:
                objects.append(_decode(kv))
        # parts of a commit whose leader died are there without its revision: nobody was told of them, and they are
        # as good as any other half-done work of a level-triggered loop; their versions must not be given again
        revision = max([int(self._written or b"0"), *(o.version for o in objects)])
        self._state.reload(objects, revision)
        self._read_at = at

    # -- writing ---------------------------------------------------------------------------------------------

    async def _write(self, batches: Sequence[Batch]) -> None:
        """In etcd when this returns; tried until it is known to be, or until this manager no longer leads."""
        for part in plan_parts(batches):
            await self._write_part(part)
        self._written = b"%d" % batches[-1].revision

    async def _write_part(self, part: list[Operation]) -> None:
        """Parts may be written twice: an answer that was lost says nothing, and the guard tells which it was."""
        fence, pause = self._fence, _PAUSE[0]
        known = has_value(REVISION, self._written) if self._written else created_at(REVISION, 0)
        after = base64.b64decode(part[-1]["request_put"]["value"]) if _ends_commit(part) else None
        tried = False
        while True:
            if not self._fence or self._fence != fence:
                raise NoLeader("this manager leads no longer")
            try:
                result = await self._client.txn(
                    [created_at(LEADER, fence), known], part, [get(LEADER), get(REVISION)]
                )
            except EtcdError as e:
                if e.grpc_code == RESOURCE_EXHAUSTED:
                    raise Unavailable(f"etcd's disk space is used up: {e.message}") from e
                log.warning("etcd does not take a write, trying again", reason=e.message)
                tried = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE[1])
                continue
            if result.succeeded:
                return
            found = {kv.key: kv for kv in result.found}
            ours = LEADER in found and found[LEADER].create_revision == fence
            if ours and tried and after is not None and REVISION in found and found[REVISION].value == after:
                return  # it was written, only its answer was lost
            self._fence = 0
            self.on_fenced()
            raise NoLeader("another manager leads")


def check_sizes(changes: Sequence[Change]) -> None:
    """Raises InvalidArgument for an object too big for etcd. A task is never bigger than its service."""
    for change in changes:
        if isinstance(change, Put) and not isinstance(change.object, Task | Node):
            size = len(encode(change.object))
            if size > MAX_OBJECT:
                raise InvalidArgument(
                    f"{change.object.kind} {change.object.id} is too large: {size} bytes; several managers share "
                    f"objects of up to {MAX_OBJECT} bytes"
                )


def _ends_commit(part: list[Operation]) -> bool:
    return bool(part[-1].get("request_put", {}).get("key") == _REVISION_KEY)


def _decode(kv: KeyValue) -> Object:
    kind, _, id = kv.key.removeprefix(OBJECTS).partition("/")
    decode = DECODERS.get(kind)
    if decode is None:
        raise Internal(
            f"etcd holds {kind} {id}, a kind this overlace does not know: it is of a newer version"
        )
    try:
        return cast(Object, decode(kv.value))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Internal(f"{kind} {id} in etcd cannot be read: {error}") from error
