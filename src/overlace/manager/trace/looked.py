"""What hosts say of themselves, laid over a computed trace: measured paths, what is not as it should be, and where
a marked packet was seen.

Owns the merging and its sentences (pure). Must not ask anybody: live.py does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from overlace.manager.paths import explain_path, name_of
from overlace.manager.trace.answer import Broken, Hop, Live, Origin, Seen, Trace
from overlace.manager.trace.walk import UNDERLAY
from overlace.model.findings import Finding, Said
from overlace.model.objects import VXLAN_PORT, Node
from overlace.model.paths import PathState, tunnel_overhead
from overlace.network.vfp.reasons import MEANINGS
from overlace.store.base import View

_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:]*:[0-9a-f:]*")
STOPPED = "is stopped (SIGSTOP)"  # of a program whose connections the kernel still accepts
_ANSWERED = ("accepted", "echo reply", "a datagram")


def by_name(view: View) -> dict[str, Node]:
    return {name_of(n): n for n in view.all(Node) if not n.removed and n.description is not None}


def hosts_on(trace: Trace, nodes: Mapping[str, Node]) -> list[str]:
    """Names of the hosts on the way, in order."""
    found = dict.fromkeys(h.where for h in trace.hops if h.where in nodes)
    if trace.origin is not None and trace.origin.host in nodes:
        found = dict.fromkeys([trace.origin.host, *found])
    return list(found)


def break_trace(trace: Trace, at: int, where: str, what: str, reason: str, remedy: str) -> Trace:
    """The way ends at hop `at`, whose place a broken one takes."""
    packet = trace.hops[at].packet if at < len(trace.hops) else trace.question
    kind = trace.hops[at].kind if at < len(trace.hops) else "look"
    bad = Hop(kind=kind, where=where, what=what, effect=reason, packet=packet, ok=False)
    return msgspec.structs.replace(
        trace,
        hops=(*trace.hops[:at], bad),
        broken=Broken(where=where, reason=reason, remedy=remedy),
        outcome=f"broken at {where}: {reason}",
    )


def with_paths(trace: Trace, view: View, paths: Mapping[tuple[str, str], PathState], size: int) -> Trace:
    """The measured way between hosts in place of the assumed one. `size`: of the packet in question, 0: small."""
    nodes = by_name(view)
    for i, hop in enumerate(trace.hops):
        a, _, b = hop.what.partition(" > ")
        if hop.kind != "underlay" or hop.where != UNDERLAY or a not in nodes or b not in nodes:
            continue
        first, second = nodes[a], nodes[b]
        there, back = paths.get((first.id, second.id)), paths.get((second.id, first.id))
        problem = explain_path(first, second, there, back)
        assert first.description is not None and second.description is not None
        declared = min(first.description.mtu, second.description.mtu)
        mtu = min(declared, there.mtu) if there is not None and there.mtu else declared
        room = mtu - tunnel_overhead(first.description.underlay_address)
        if there is not None and there.state == "down" and problem is not None:
            return break_trace(trace, i, f"{a} > {b}", "underlay", problem.reason, problem.remedy)
        if size > room:
            remedy = (
                problem.remedy
                if problem is not None
                else f"send at most {room} bytes, or raise the underlay's MTU"
            )
            reason = (
                f"an IP packet of {size} bytes does not fit: from {a} to {b} {room} do (underlay MTU {mtu}); "
            )
            return break_trace(
                trace,
                i,
                f"{a} > {b}",
                "underlay",
                f"{reason}the sender is told by ICMP fragmentation needed",
                remedy,
            )
        if there is None or not there.mtu:
            continue
        said = "measured" if mtu == declared else f"measured; the interfaces say {declared}"
        text = f"IP packets of up to {room} bytes fit (underlay MTU {mtu}, {said}); {there.loss} % lost, {there.rtt} us"
        hops = list(trace.hops)
        hops[i] = msgspec.structs.replace(hop, effect=text)
        notes = trace.notes
        if problem is not None:
            notes = (*notes, f"{a} > {b}: {problem.reason}; {problem.remedy}")
        trace = msgspec.structs.replace(trace, hops=tuple(hops), notes=notes)
    return trace


def concerns(finding: Finding, trace: Trace) -> bool:
    """Whether it is about an address of this trace, or about the host as a whole."""
    if not finding.about:
        return True
    text = " ".join([trace.question, trace.target, *(f"{h.packet} {h.effect}" for h in trace.hops)])
    known = {*_ADDRESS.findall(text), *(m.address for m in trace.members)}
    return any(a in known for a in finding.about)


def enters(trace: Trace, host: str, port: str, address: str) -> int | None:
    """The hop at which the packet is at `port` (as 22/tcp) of `host` itself, plain and not for a container; None: at
    none. `address`: the host's."""
    number, _, word = port.partition("/")
    for i, hop in enumerate(trace.hops):
        before = trace.hops[i - 1] if i else None
        came = before.packet if before is not None else trace.question
        fits = came.endswith(f":{number} {word}")
        if hop.where == host and before is not None and before.where == host:
            # on its way through this host: its own port only where it goes to the host's own address
            fits = fits and f"> {address}:" in came.replace("[", "").replace("]", "")
        if hop.where == host and fits and hop.kind not in ("start", "decap"):
            return i
    return None


def _with_ports(trace: Trace, host: str, found: Sequence[Finding], address: str) -> Trace:
    """What is wrong with the very port the packet comes to on this host."""
    for f in found:
        at = enters(trace, host, f.port, address)
        if at is None:
            continue
        if f.mild or trace.broken is not None:
            trace = msgspec.structs.replace(trace, notes=(*trace.notes, f"on {host}: {f.what}; {f.remedy}"))
        else:  # it comes to no backend
            trace = break_trace(trace, at, host, "a program of the host", f.what, f.remedy)
            trace = msgspec.structs.replace(trace, members=(), reached=())
    return trace


def with_findings(trace: Trace, said: Mapping[str, Said], addresses: Mapping[str, str]) -> Trace:
    """What each host found wrong with itself, by name: the first on the way is where it breaks. `addresses`: of the
    hosts' own, by name."""
    for host, answer in said.items():
        if answer.error:
            trace = msgspec.structs.replace(
                trace, notes=(*trace.notes, f"{host} could not be asked: {answer.error}")
            )
        mine = [f for f in answer.findings if concerns(f, trace)]
        trace = _with_ports(trace, host, [f for f in mine if f.port], addresses.get(host, ""))
        mine = [f for f in mine if not f.port]
        mild, mine = [f for f in mine if f.mild], [f for f in mine if not f.mild]
        for f in mild:
            trace = msgspec.structs.replace(trace, notes=(*trace.notes, f"on {host}: {f.what}; {f.remedy}"))
        for f in mine[1:] if trace.broken is None else mine:
            trace = msgspec.structs.replace(trace, notes=(*trace.notes, f"on {host}: {f.what}; {f.remedy}"))
        if mine and trace.broken is None:
            at = next((i for i, h in enumerate(trace.hops) if h.where == host), len(trace.hops))
            # what the switch holds shows at its rules, not in the container before them
            if at < len(trace.hops) and trace.hops[at].kind == "start":
                at += 1
            trace = break_trace(trace, at, host, "as it is", mine[0].what, mine[0].remedy)
    return trace


def see(order: Sequence[str], seen: Mapping[str, Said]) -> list[Seen]:
    """What each host, in this order, saw of a marked packet."""
    sightings: list[Seen] = []
    for host in order:
        for s in seen.get(host, Said()).sightings:
            what = MEANINGS.get(s.reason, s.reason) if s.reason else ""
            shown = s.packet + (f" in VNI {s.vni}" if s.vni and s.packet else "")
            sightings.append(
                Seen(where=host, interface=s.interface, packet=shown, verdict=s.reason, meaning=what, at=s.at)
            )
    return sightings


def with_live(trace: Trace, mark: int, sent: Said, seen: Mapping[str, Said]) -> Trace:
    """Where the marked packet was seen, host by host from the sender's on, and what came back."""
    origin = trace.origin
    assert origin is not None
    if sent.unable:
        note = f"no packet was sent from {origin.host}: {sent.error}"
        return msgspec.structs.replace(trace, notes=(*trace.notes, note))
    sightings = see([origin.host, *(h for h in seen if h != origin.host)], seen)
    broken = explain_sightings(origin, sent, sightings)
    last = f"{sightings[-1].where}: {sightings[-1].verdict or 'came by'}" if sightings else ""
    live = Live(
        mark=mark,
        answer=sent.answer,
        error=sent.error,
        sightings=tuple(sightings),
        last_seen=last,
        broken=broken,
    )
    trace = msgspec.structs.replace(trace, live=live)
    if broken is not None and trace.broken is None:
        trace = msgspec.structs.replace(
            trace,
            broken=broken,
            outcome=f"broken at {broken.where}: {broken.reason} (seen with a real packet)",
        )
    elif broken is None and trace.broken is not None and not trace.broken.where.startswith("--"):
        if STOPPED in trace.broken.reason:
            note = (
                f"{sent.answer} is the kernel's word, which takes connections for a program that is stopped"
            )
        else:
            note = (
                f"yet the packet that was sent got through ({sent.answer}): what is computed above is not all "
                "that holds"
            )
        trace = msgspec.structs.replace(trace, notes=(*trace.notes, note))
    return trace


def explain_sightings(origin: Origin, sent: Said, sightings: Sequence[Seen]) -> Broken | None:
    """What kept a marked packet from being answered; None: nothing."""
    if sent.error:
        remedy = "look at the container's interfaces and routes: nsenter --net=... ip addr, ip route"
        return Broken(where=origin.host, reason=f"the packet could not be sent: {sent.error}", remedy=remedy)
    if sent.answer.startswith(_ANSWERED):
        return None
    if not sightings:
        return Broken(
            where=origin.host,
            reason="the packet never came to the switch: it was lost between the container's program and its interface",
            remedy="look at the container's interface and routes: is eth0 up, is there a route to the target?",
        )
    last = sightings[-1]
    verdict = last.verdict
    if verdict == "delivered":
        if sent.answer.startswith("refused") or "port unreachable" in sent.answer:
            return Broken(
                where=last.where,
                reason=f"it reached the container on {last.where}, and nothing there listens on port {origin.port}: "
                f"{sent.answer}",
                remedy="start the program, have it listen on 0.0.0.0 and not only on 127.0.0.1, or name its --port",
            )
        if origin.protocol != "udp" and not sent.answer:
            return Broken(
                where=last.where,
                reason=f"the packet reached the container on {last.where}, which does not answer",
                remedy="docker service logs; the program, or a firewall in the container, drops it",
            )
        return None
    if verdict in ("encapsulated", "slow_path"):
        return Broken(
            where="underlay",
            reason=f"the packet left {last.where} in VXLAN and was seen on no other host",
            remedy=f"let UDP {VXLAN_PORT} pass between the hosts (overlace network health names the pair): look at the "
            "network between them",
        )
    if verdict == "refused":
        return Broken(
            where=last.where,
            reason=last.meaning,
            remedy="docker service ps --no-trunc says what keeps its tasks from running",
        )
    if verdict.startswith("drop_"):
        return Broken(
            where=last.where,
            reason=f"dropped by the switch of {last.where}: {last.meaning} ({verdict})",
            remedy="overlace vfp rules and counters on that host say more",
        )
    return None
