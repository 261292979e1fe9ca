"""What becomes of a packet for each container it may come to, by what hosts say: the way there, what is wrong at its
host, whether its program listens, and what a packet really sent to it met.

Owns the judging (pure). Must not ask anybody: live.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from overlace.manager.paths import explain_path
from overlace.manager.trace.answer import Broken, LiveMember, Origin, Reached, Trace, explain_broken
from overlace.manager.trace.looked import STOPPED, break_trace, by_name, explain_sightings, see
from overlace.model.family import is_six
from overlace.model.findings import Examine, Said, Socket
from overlace.model.objects import Network
from overlace.model.paths import PathState
from overlace.model.protocols import PROTOCOLS
from overlace.network.vfp.model import within
from overlace.store.base import View

LISTENERS = ("tcp", "udp", "sctp")
REMEDY = "start the program, have it listen on 0.0.0.0 and not only on 127.0.0.1, or name its --port"
_RESOLVER = "127.0.0.11"  # ours, in every container
_SHOWN = 5


def plan_examine(trace: Trace, protocol: str, host: str) -> Examine:
    """What to ask a host of this trace."""
    tasks = tuple(r.task for r in trace.reached if r.host == host)
    return Examine(tasks=tasks, protocol=PROTOCOLS[protocol]) if protocol in LISTENERS else Examine()


def explain_members(
    trace: Trace,
    protocol: str,
    view: View,
    paths: Mapping[tuple[str, str], PathState],
    said: Mapping[str, Said],
) -> tuple[dict[str, Broken], tuple[str, ...]]:
    """What keeps packets from containers, by address, and what else is worth saying."""
    bad: dict[str, Broken] = {}
    notes: list[str] = []
    told: dict[Reached, tuple[Socket, ...]] = {}
    for r in trace.reached:
        answer = said.get(r.host, Said())
        wrong = _on_the_way(trace, r, view, paths) or _at_its_host(r, answer)
        if wrong is not None:
            bad[r.address] = wrong
        elif protocol in LISTENERS and not answer.error:
            heard = next((o for o in answer.listening if o.task_id == r.task), None)
            if heard is not None and not heard.error:
                told[r] = heard.sockets
            else:
                why = heard.error if heard is not None else "its overlace is older and does not say"
                notes.append(f"whether containers on {r.host} listen is not known: {why}")
    # nobody asked for an assumed port: that nothing at all listens on it is no fault
    guessed_wrong = trace.assumed and not any(s.port == r.port for r, found in told.items() for s in found)
    for r, sockets in told.items():
        if guessed_wrong:
            notes.append(_explain_guess(sockets, r, protocol))
            continue
        if (wrong := explain_sockets(sockets, r, protocol)) is not None:
            bad[r.address] = wrong
        if waiting := sum(s.waiting for s in sockets if s.port == r.port):
            notes.append(
                f"{waiting} connections wait to be accepted by {r.name}: is its program busy, or does it hang?"
            )
    return bad, tuple(dict.fromkeys(notes))


def _on_the_way(
    trace: Trace, r: Reached, view: View, paths: Mapping[tuple[str, str], PathState]
) -> Broken | None:
    nodes, entry = by_name(view), trace.hops[0].where if trace.hops else ""
    a, b = nodes.get(entry), nodes.get(r.host)
    if a is None or b is None or a.id == b.id:
        return None
    there = paths.get((a.id, b.id))
    problem = explain_path(a, b, there, paths.get((b.id, a.id)))
    if there is None or there.state != "down" or problem is None:
        return None
    return Broken(where=f"{entry} > {r.host}", reason=problem.reason, remedy=problem.remedy)


def _at_its_host(r: Reached, said: Said) -> Broken | None:
    for f in said.findings:
        if r.address in f.about:
            return Broken(where=r.host, reason=f.what, remedy=f.remedy)
    return None


def explain_sockets(sockets: Sequence[Socket], r: Reached, protocol: str) -> Broken | None:
    """Why a container does not take what comes to `r`; None: it does."""
    there = [s for s in sockets if s.port == r.port and s.address != _RESOLVER]
    fitting = [
        s
        for s in there
        if s.address in (r.address, "::") or (s.address == "0.0.0.0" and not is_six(r.address))
    ]
    who = f"{r.name} on {r.host}: "
    if not there:
        others = sorted({s.port for s in sockets if not s.address.startswith("127.")})
        rest = f", only on {_ports(others)}" if others else ""
        return Broken(
            where=r.host,
            reason=f"{who}nothing listens on {protocol} port {r.port}{rest}",
            remedy=REMEDY,
        )
    if not fitting:
        held = ", ".join(sorted({s.address for s in there}))
        return Broken(
            where=r.host,
            reason=f"{who}its program listens on {protocol} port {r.port} at {held} alone, not at {r.address}",
            remedy=f"have it listen on {'::' if ':' in r.address else '0.0.0.0'}",
        )
    if all(s.stopped for s in fitting):
        return Broken(
            where=r.host,
            reason=f"{who}its program that listens on {protocol} port {r.port} {STOPPED}: "
            "connections wait for ever",
            remedy=f"let it go on (docker kill -s CONT CONTAINER on {r.host}), or docker service update --force",
        )
    return None


def _ports(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(map(str, numbers[:_SHOWN])) + more


def _explain_guess(sockets: Sequence[Socket], r: Reached, protocol: str) -> str:
    ports = sorted({s.port for s in sockets if not s.address.startswith("127.")})
    listens = f"it listens on {protocol} {_ports(ports)}" if ports else f"it listens on no {protocol} port"
    return f"port {r.port} was assumed, and nothing in {r.name} listens there: {listens}; --port names one"


def with_members(trace: Trace, bad: Mapping[str, Broken]) -> Trace:
    """Each backend with what is wrong with it; the way ends at the first such, where it does not end before."""
    if not bad:
        return trace
    trace = _marked(trace, {address: b.reason for address, b in bad.items()})
    if trace.broken is not None:
        return trace
    broken = bad.get(_shown(trace)) or next(iter(bad.values()))
    trace = break_trace(
        trace, len(trace.hops) - 1, broken.where, trace.hops[-1].what, broken.reason, broken.remedy
    )
    return msgspec.structs.replace(trace, outcome=_outcome(trace, broken, ""))


def _shown(trace: Trace) -> str:
    """Address of the container whose way is shown."""
    end = trace.hops[-1].packet if trace.hops else ""
    return next(
        (r.address for r in trace.reached if f"> {r.address}:" in end or f"> [{r.address}]:" in end), ""
    )


def _marked(trace: Trace, reasons: Mapping[str, str]) -> Trace:
    members = tuple(
        msgspec.structs.replace(
            m, ok=False, reason=reasons[m.address].removeprefix(f"{m.task} on {m.node}: ")
        )
        if m.ok and m.address in reasons
        else m
        for m in trace.members
    )
    return msgspec.structs.replace(trace, members=members)


def _outcome(trace: Trace, broken: Broken, how: str) -> str:
    return explain_broken(trace.members, broken) + how


# -- live ------------------------------------------------------------------------------------------------------


def plan_each(trace: Trace, view: View) -> list[Reached]:
    """The backends whose own addresses the sender can be asked to send a packet to."""
    origin = trace.origin
    if origin is None or not origin.task or len(trace.members) < 2:
        return []
    subnets = [tuple(s.subnet for s in n.subnets) for n in view.all(Network)]
    mine = [s for s in subnets if within(origin.source, s)]
    return [r for r in trace.reached if any(within(r.address, s) for s in mine)]


def explain_each(
    origin: Origin, r: Reached, sent: Said, seen: Mapping[str, Said]
) -> tuple[LiveMember, Broken | None]:
    """What became of the packet sent to one backend."""
    origin = msgspec.structs.replace(origin, target=r.address, port=r.port)
    sightings = see([origin.host, *(h for h in seen if h != origin.host)], seen)
    broken = explain_sightings(origin, sent, sightings)
    last = f"{sightings[-1].where}: {sightings[-1].verdict or 'came by'}" if sightings else "seen nowhere"
    if sightings and sightings[-1].verdict == "drop_policy":
        broken = None  # a policy may let the service's address pass and not its tasks' own
    return (
        LiveMember(
            task=r.name,
            node=r.host,
            address=r.address,
            answer=sent.answer or (f"not sent: {sent.error}" if sent.error else ""),
            last_seen=last,
            ok=broken is None,
        ),
        broken,
    )


def with_each(trace: Trace, found: Sequence[tuple[LiveMember, Broken | None]]) -> Trace:
    """`found`: of each backend a packet was sent to."""
    assert trace.live is not None
    members = tuple(m for m, _ in found)
    trace = msgspec.structs.replace(trace, live=msgspec.structs.replace(trace.live, members=members))
    bad = {m.address: broken for m, broken in found if broken is not None}
    trace = _marked(trace, {address: b.reason for address, b in bad.items()})
    if trace.broken is None and bad:
        broken = next(iter(bad.values()))
        trace = msgspec.structs.replace(
            trace, broken=broken, outcome=_outcome(trace, broken, " (seen with a real packet)")
        )
    return trace
