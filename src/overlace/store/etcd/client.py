"""etcd's v3 protocol as far as the managers need it: JSON over HTTP on the member's unix socket.

Owns encoding, timeouts and turning failures into words. The socket lies in a folder of root's, so what reaches it is
this host's manager; other hosts' members are reached by etcd itself, over TLS. Must not know objects or leaders.
Source: etcd 3.4 `Documentation/dev-guide/api_grpc_gateway.md` and `etcdserver/etcdserverpb/rpc.proto`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from overlace.model.errors import Unavailable

TIMEOUT = 5.0  # seconds for one request; etcd itself gives up after about 7
RESOURCE_EXHAUSTED, OUT_OF_RANGE, NOT_FOUND = 8, 11, 5  # gRPC status codes
_PAGE = 1000  # keys; halved while an answer is too big for etcd's gateway (4 MiB)


class EtcdError(Unavailable):
    """etcd refused, or did not answer (`grpc_code` 14, UNAVAILABLE: it may have done what was asked)."""

    def __init__(self, message: str, grpc_code: int = 14) -> None:
        super().__init__(message)
        self.grpc_code = grpc_code


class KeyValue(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    deleted: bool = False


class EtcdMember(msgspec.Struct, frozen=True):
    id: int
    name: str  # empty until it has started once
    peer_urls: tuple[str, ...]
    learner: bool = False


class TxnResult(msgspec.Struct, frozen=True):
    succeeded: bool
    revision: int  # etcd's
    found: tuple[KeyValue, ...] = ()  # what the txn's failure branch read


# -- parts of a request ------------------------------------------------------------------------------------------


def put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    asked = {"key": _b64(key), "value": _b64(value)}
    return {"request_put": asked | ({"lease": str(lease)} if lease else {})}


def delete(key: str) -> dict[str, Any]:
    return {"request_delete_range": {"key": _b64(key)}}


def get(key: str) -> dict[str, Any]:
    return {"request_range": {"key": _b64(key)}}


def created_at(key: str, revision: int) -> dict[str, Any]:
    """The key was made at this etcd revision (0: it does not exist)."""
    return {"target": "CREATE", "key": _b64(key), "result": "EQUAL", "create_revision": str(revision)}


def has_value(key: str, value: bytes) -> dict[str, Any]:
    return {"target": "VALUE", "key": _b64(key), "result": "EQUAL", "value": _b64(value)}


class EtcdClient:
    """Talks to the member whose socket is `path`. Every call raises EtcdError; `timeout` in seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- keys ----------------------------------------------------------------------------------------------

    async def range(
        self, start: str, end: str = "", *, serializable: bool = False, timeout: float = TIMEOUT
    ) -> tuple[int, list[KeyValue]]:
        """The keys from `start` to before `end` (empty: that key alone) at one revision, which is returned first.

        `serializable`: what this member has, without asking the others; it answers without a quorum."""
        at, found, limit = 0, [], _PAGE
        while True:
            asked: dict[str, Any] = {"key": _b64(start), "limit": str(limit), "serializable": serializable}
            if end:
                asked["range_end"] = _b64(end)
            if at:
                asked["revision"] = str(at)
            try:
                answer = await self._call("/v3/kv/range", asked, timeout)
            except EtcdError as e:
                if e.grpc_code != RESOURCE_EXHAUSTED or limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            at = at or _revision(answer)
            page = [_key_value(kv) for kv in answer.get("kvs", ())]
            found += page
            if not answer.get("more") or not page:
                return at, found
            start = page[-1].key + "\0"

    async def txn(
        self,
        compare: Sequence[dict[str, Any]],
        success: Sequence[dict[str, Any]],
        failure: Sequence[dict[str, Any]] = (),
        timeout: float = TIMEOUT,
    ) -> TxnResult:
        asked = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        answer = await self._call("/v3/kv/txn", asked, timeout)
        found = [
            _key_value(kv)
            for response in answer.get("responses", ())
            for kv in response.get("response_range", {}).get("kvs", ())
        ]
        return TxnResult(bool(answer.get("succeeded")), _revision(answer), tuple(found))

    async def watch(self, start: str, end: str, after: int) -> AsyncIterator[list[KeyValue]]:
        """What changed after etcd's revision `after`: one list per answer of etcd's, whole revisions, in order.

        Ends only with an error; OUT_OF_RANGE when those revisions are compacted away."""
        create: dict[str, Any] = {"key": _b64(start), "start_revision": str(after + 1), "fragment": True}
        if end:
            create["range_end"] = _b64(end)
        rest, gathered = b"", list[KeyValue]()
        try:
            async with self._http().post(
                "http://etcd/v3/watch",
                json={"create_request": create},
                timeout=aiohttp.ClientTimeout(total=None),
            ) as stream:
                async for piece in stream.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        answer = msgspec.json.decode(line)
                        if "result" not in answer:
                            raise _refused(answer.get("error", answer))
                        result = answer["result"]
                        if result.get("compact_revision"):
                            raise EtcdError("etcd has compacted the revisions to watch from", OUT_OF_RANGE)
                        if result.get("canceled"):
                            raise EtcdError(f"etcd ended the watch: {result.get('cancel_reason', '')}")
                        gathered += [_event(e) for e in result.get("events", ())]
                        if not result.get("fragment"):
                            if gathered:
                                yield gathered
                            gathered = []
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise EtcdError(f"the watch on etcd broke: {e or type(e).__name__}") from e
        raise EtcdError("etcd closed the watch")

    # -- leases --------------------------------------------------------------------------------------------

    async def grant(self, ttl: int, timeout: float = TIMEOUT) -> tuple[int, float]:
        """(lease, seconds it lives): etcd may give more than asked for."""
        answer = await self._call("/v3/lease/grant", {"TTL": str(ttl)}, timeout)
        return int(answer["ID"]), float(answer["TTL"])

    async def keep_alive(self, lease: int, timeout: float = TIMEOUT) -> bool:
        """False: the lease has ended."""
        answer = await self._call("/v3/lease/keepalive", {"ID": str(lease)}, timeout)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke(self, lease: int, timeout: float = TIMEOUT) -> None:
        await self._call("/v3/lease/revoke", {"ID": str(lease)}, timeout)

    # -- members -------------------------------------------------------------------------------------------

    async def members(self, timeout: float = TIMEOUT) -> tuple[int, list[EtcdMember]]:
        """(this member's id, all members)."""
        answer = await self._call("/v3/cluster/member/list", {}, timeout)
        return int(answer["header"]["member_id"]), [_member(m) for m in answer.get("members", ())]

    async def add_learner(self, peer_url: str) -> EtcdMember:
        """A member without a vote yet: should it never start, nothing waits for it."""
        answer = await self._call(
            "/v3/cluster/member/add", {"peerURLs": [peer_url], "isLearner": True}, TIMEOUT
        )
        return _member(answer["member"])

    async def promote(self, member: int) -> None:
        """Give a learner its vote. Refused until it has caught up."""
        await self._call("/v3/cluster/member/promote", {"ID": str(member)}, TIMEOUT)

    async def remove(self, member: int) -> None:
        await self._call("/v3/cluster/member/remove", {"ID": str(member)}, TIMEOUT)

    # -- HTTP ----------------------------------------------------------------------------------------------

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(self.path)))
        return self._session

    async def _call(self, path: str, asked: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(timeout),
                self._http().post(
                    f"http://etcd{path}",
                    data=io.BytesIO(msgspec.json.encode(asked)),
                    timeout=aiohttp.ClientTimeout(total=None),
                ) as response,
            ):
                body = await response.read()
        except TimeoutError:
            raise EtcdError(f"etcd did not answer within {timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as e:
            raise EtcdError(f"etcd cannot be reached: {e or type(e).__name__}") from e
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError as e:
            raise EtcdError(f"etcd answered HTTP {response.status} and no JSON") from e
        if response.status != 200:
            raise _refused(answer)
        return dict(answer)


def _refused(answer: Any) -> EtcdError:
    known = answer if isinstance(answer, dict) else {}
    text = known.get("message") or known.get("error") or str(answer)
    return EtcdError(str(text), int(known.get("code") or known.get("grpc_code") or 14))


def _b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _bytes(text: str) -> bytes:
    return binascii.a2b_base64(text)


def _revision(answer: dict[str, Any]) -> int:
    return int(answer["header"].get("revision", 0))


def _key_value(kv: dict[str, Any], deleted: bool = False) -> KeyValue:
    return KeyValue(
        key=_bytes(kv["key"]).decode(),
        value=_bytes(kv.get("value", "")),
        create_revision=int(kv.get("create_revision", 0)),
        mod_revision=int(kv.get("mod_revision", 0)),
        deleted=deleted,
    )


def _event(event: dict[str, Any]) -> KeyValue:
    return _key_value(event["kv"], event.get("type") == "DELETE")


def _member(m: dict[str, Any]) -> EtcdMember:
    return EtcdMember(int(m["ID"]), m.get("name", ""), tuple(m.get("peerURLs", ())), bool(m.get("isLearner")))
