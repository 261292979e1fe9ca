"""Requests only the leader can answer, passed on by a manager that does not lead.

Owns what of a request and of its answer crosses. A client of a follower sees what the leader says, and finds the change
it asked for in the follower's own lists afterwards. Must not know nouns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from overlace.api.backend import LeaderAddress, ManagerHandle
from overlace.model.errors import NoLeader, NotReached, Unavailable
from overlace.wire.transport import REVISION_HEADER

FORWARDED = "Overlace-Forwarded"
PATIENCE = 15.0  # seconds in which a leader that cannot be reached is asked for again: an election takes less
_REQUEST = ("Content-Type", "X-Registry-Auth", "User-Agent")


async def pass_on(
    request: web.Request, manager: ManagerHandle, answer_here: Callable[[], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The leader's answer. Raises NoLeader when there is none for a while."""
    if FORWARDED in request.headers:
        raise NoLeader("the manager this was forwarded to does not lead either")
    body = await request.read()
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        leader = await manager.wait_leader()
        if leader.node_id == manager.node_id:
            return await answer_here()
        try:
            return await _ask(request, manager, leader, body)
        except NotReached:
            # it has just died: the others will soon have another
            if asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(0.2)


async def _ask(
    request: web.Request, manager: ManagerHandle, leader: LeaderAddress, body: bytes
) -> web.StreamResponse:
    headers = {name: request.headers[name] for name in _REQUEST if name in request.headers}
    async with manager.ask(
        leader, request.method, request.raw_path, headers | {FORWARDED: manager.node_id}, body
    ) as answer:
        try:
            return await _relay(request, manager, answer)
        except aiohttp.ClientError as e:
            raise Unavailable(
                f"the leader at {leader.addr} went away while it answered; look whether what you asked was done: {e}"
            ) from e


async def _relay(
    request: web.Request, manager: ManagerHandle, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    headers = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
    if REVISION_HEADER in answer.headers:
        await manager.caught_up(int(answer.headers[REVISION_HEADER]))
    if "Content-Length" in answer.headers or answer.status == 204:
        body = await answer.read()
        return web.Response(status=answer.status, body=body, headers=headers if body else {})
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for piece in answer.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response
