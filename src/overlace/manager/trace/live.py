"""Asks the hosts on a trace's way to look at themselves, and sends a marked packet when that is wanted.

Owns who is asked what, and in which order. What the answers mean is looked.py's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from overlace.manager.trace.answer import Broken, LiveMember, Origin, Question, Reached, Trace
from overlace.manager.trace.looked import by_name, hosts_on, with_findings, with_live, with_paths
from overlace.manager.trace.members import (
    explain_each,
    explain_members,
    plan_each,
    plan_examine,
    with_each,
    with_members,
)
from overlace.manager.trace.trace import explain_trace
from overlace.model.errors import InvalidArgument
from overlace.model.findings import Arm, Collect, Inject, Said
from overlace.model.findings import Question as HostQuestion
from overlace.model.paths import PathState
from overlace.model.protocols import PROTOCOLS
from overlace.model.states import NodeState
from overlace.store.base import View

AT_ONCE = 4  # packets to single backends under way: a host waits for each in a thread
MAX_HOSTS = 64  # watched for a marked packet
SECONDS = 1.5  # an answer is waited for

Ask = Callable[[str, HostQuestion], Awaitable[Said]]


async def trace_hosts(
    view: View,
    question: Question,
    paths: Mapping[tuple[str, str], PathState],
    ask: Ask,
    *,
    live: bool,
    rng: random.Random | None = None,
) -> Trace:
    """The computed trace with what the hosts on its way say. Raises what explain_trace raises, and InvalidArgument when
    there is nowhere to send a packet from."""
    trace = with_paths(explain_trace(view, question), view, paths, question.size)
    nodes = by_name(view)
    up = {name: n.id for name, n in nodes.items() if n.status.state == NodeState.READY}
    on = [h for h in hosts_on(trace, nodes) if h in up]
    members = {m.node for m in trace.members if m.node in up}
    asked = list(dict.fromkeys([*on, *sorted(members)]))
    answers = await asyncio.gather(*(ask(up[h], plan_examine(trace, question.protocol, h)) for h in asked))
    said = dict(zip(asked, answers, strict=True))
    bad, notes = explain_members(trace, question.protocol, view, paths, said)
    if trace.broken is None and trace.members and bad:  # the way that is shown is one that is broken
        trace = with_paths(explain_trace(view, question, next(iter(bad))), view, paths, question.size)
    addresses = {h: n.description.underlay_address for h, n in nodes.items() if n.description is not None}
    trace = with_members(with_findings(trace, said, addresses), bad)
    trace = msgspec.structs.replace(trace, notes=(*trace.notes, *notes))
    if not live:
        return trace
    rng = rng or random.Random()
    trace = await _send(trace, up, asked, ask, rng)
    if trace.live is None:
        return trace
    return await _send_to_each(trace, plan_each(trace, view), up, ask, rng)


async def _send(trace: Trace, up: Mapping[str, str], first: list[str], ask: Ask, rng: random.Random) -> Trace:
    origin = trace.origin
    if origin is None or origin.host not in up:
        raise InvalidArgument(
            "--live sends a packet from inside the swarm: FROM must be a task, service or node that runs"
        )
    if origin.protocol not in ("tcp", "udp", "icmp"):
        raise InvalidArgument(f"--live cannot send {origin.protocol}: use tcp, udp or icmp")
    mark = rng.randrange(1, 1 << 16)
    watched = list(dict.fromkeys([*first, *up]))[:MAX_HOSTS]
    await asyncio.gather(*(ask(up[h], Arm(mark)) for h in watched))
    sent = await ask(up[origin.host], _packet(origin, mark, rng))
    seen = await asyncio.gather(*(ask(up[h], Collect(mark)) for h in watched))
    return with_live(trace, mark, sent, dict(zip(watched, seen, strict=True)))


def _packet(origin: Origin, mark: int, rng: random.Random) -> Inject:
    return Inject(
        mark=mark,
        task_id=origin.task,
        source=origin.source,
        target=origin.target,
        protocol=PROTOCOLS[origin.protocol],
        source_port=rng.randrange(40000, 60000),
        target_port=origin.port,
        seconds=SECONDS,
    )


async def _send_to_each(
    trace: Trace, members: Sequence[Reached], up: Mapping[str, str], ask: Ask, rng: random.Random
) -> Trace:
    """One more packet to each backend: the one to the service met a single one of them."""
    origin = trace.origin
    if not members or origin is None:
        return trace
    marks = rng.sample(range(1, 1 << 16), len(members))
    few = asyncio.Semaphore(AT_ONCE)

    async def one(r: Reached, mark: int) -> tuple[LiveMember, Broken | None]:
        async with few:
            watched = [h for h in dict.fromkeys((origin.host, r.host)) if h in up]
            await asyncio.gather(*(ask(up[h], Arm(mark)) for h in watched))
            there = msgspec.structs.replace(origin, target=r.address, port=r.port)
            sent = await ask(up[origin.host], _packet(there, mark, rng))
            seen = await asyncio.gather(*(ask(up[h], Collect(mark)) for h in watched))
            return explain_each(origin, r, sent, dict(zip(watched, seen, strict=True)))

    return with_each(trace, await asyncio.gather(*(one(r, m) for r, m in zip(members, marks, strict=True))))
