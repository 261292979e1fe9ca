"""What the nodes measured of the ways between them, and what a person makes of it.

Owns the newest report of every pair, in memory: agents say all of it again to a new manager. Sentences and the matrix
are pure. Must not know the wire or how anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from overlace.manager.netviews import takes_part
from overlace.model.objects import VXLAN_PORT, Network, Node, Task
from overlace.model.paths import Notice, PathState, tunnel_overhead
from overlace.model.states import NodeState
from overlace.store.base import View
from overlace.wire.messages import Paths

log = structlog.get_logger(__name__)
WHY_NOT = "the switch of a Windows host answers no probes; its agent measures the ways from it"


class _Doc(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """PascalCase members, all of them written."""


class HealthHost(_Doc, frozen=True):
    id: str
    name: str
    address: str
    state: str  # of the node: ready | down | unknown


class HealthPath(_Doc, frozen=True):
    """`from_`/`to`: names. `state`: ok, lossy, down, new (being measured), unknown (FROM said nothing of it), unmeasured
    (TO answers no probes: `why`)."""

    from_: str = msgspec.field(name="From")
    to: str
    state: str
    loss: int  # percent
    rtt_us: int = msgspec.field(name="RttUs")
    jitter_us: int = msgspec.field(name="JitterUs")
    mtu: int = msgspec.field(name="Mtu")  # of the underlay path; 0: not known
    checksum: str
    fragments: str
    since: int  # ns; 0: unknown
    why: str  # it is not measured


class HealthProblem(_Doc, frozen=True):
    from_: str = msgspec.field(name="From")
    to: str
    reason: str
    remedy: str


class NetworkHealth(_Doc, frozen=True):
    id: str
    name: str
    container_mtu: int = msgspec.field(
        name="ContainerMtu"
    )  # largest IP packet that fits every path; 0: not known
    hosts: tuple[HealthHost, ...]
    paths: tuple[HealthPath, ...]
    problems: tuple[HealthProblem, ...]


def hosts_of(view: View, network: Network) -> list[Node]:
    """The nodes that take part in the network, by name."""
    ids = {
        t.node_id
        for t in view.all(Task)
        if takes_part(t) and any(n.network_id == network.id for n in t.networks)
    }
    found = [
        n
        for n in view.all(Node)
        if not n.removed and n.description is not None and (network.spec.ingress or n.id in ids)
    ]
    return sorted(found, key=lambda n: (name_of(n), n.id))


def name_of(node: Node) -> str:
    return (
        node.description.hostname if node.description is not None and node.description.hostname else node.id
    )


def explain_path(a: Node, b: Node, there: PathState | None, back: PathState | None) -> HealthProblem | None:
    """What is wrong on the way from `a` to `b`, and what to do; None: nothing, or nothing known."""
    first, second = name_of(a), name_of(b)
    for node in (a, b):
        if node.status.state == NodeState.DOWN:
            name = name_of(node)
            return HealthProblem(
                from_=first,
                to=second,
                reason=f"node {name} is down: {node.status.message or 'no word from it'}",
                remedy=f"start {name} and its daemon; docker node ls shows it",
            )
    if there is None:
        return None
    if there.state == "down" and not _answers(b):  # an agent of before it was told
        return None
    for near, far, state in ((a, b, there), (b, a, back)):
        if there.state == "down" and state is not None and state.route:
            return HealthProblem(
                from_=first,
                to=second,
                reason=f"{name_of(near)} ({_address(near)}) has {state.route} to {name_of(far)} ({_address(far)})",
                remedy=f"mend the route table of {name_of(near)}: ip route get {_address(far)} there shows what it has; "
                f"ip route add {_address(far)} via GATEWAY, or set the interface that leads there up",
            )
    if there.state == "down":
        both = back is not None and back.state == "down"
        reason = (
            f"UDP {VXLAN_PORT} between {first} ({_address(a)}) and {second} ({_address(b)}) is not answered"
        )
        word = ", though both talk to the manager" if both else f"; {second} reaches {first}" if back else ""
        return HealthProblem(
            from_=first,
            to=second,
            reason=reason + word,
            remedy=(
                f"let UDP {VXLAN_PORT} pass both ways between {_address(a)} and {_address(b)}: look at the firewall of "
                f"both hosts (nft list ruleset) and of the network between them (security groups), and at the route "
                f"(ip route get {_address(b)} on {first})"
            ),
        )
    if there.checksum == "bad":
        return HealthProblem(
            from_=first,
            to=second,
            reason=f"checksums inside the tunnel from {first} arrive corrupted at {second}, and {first}'s network card "
            "does not give that work back",
            remedy=f"turn it off by hand on {first}: ethtool -K DEVICE tx off, or update the card's driver",
        )
    declared = min(_mtu(a), _mtu(b))
    if there.mtu and there.mtu < declared:
        return HealthProblem(
            from_=first,
            to=second,
            reason=f"packets of {there.mtu + 1} bytes and more from {first} to {second} get lost on the way, though both "
            f"interfaces take {declared}",
            remedy=f"containers were given {there.mtu - tunnel_overhead(there.address)}, so nothing is lost; for larger "
            f"ones raise the MTU of what lies between {_address(a)} and {_address(b)} to {declared}",
        )
    if there.fragments == "lost":
        return HealthProblem(
            from_=first,
            to=second,
            reason=f"packets from {first} too large for the path, which take the kernel's own way in fragments, "
            f"do not reach {second}: a firewall on one of the hosts drops UDP {VXLAN_PORT}",
            remedy=f"let UDP {VXLAN_PORT} pass on {first} (output) and {second} (input): nft list ruleset names the "
            f"rule; nft insert rule inet filter input udp dport {VXLAN_PORT} accept",
        )
    if there.state == "lossy":
        return HealthProblem(
            from_=first,
            to=second,
            reason=f"{there.loss} % of the packets from {first} to {second} get lost",
            remedy=f"look at the links between them, and at their interfaces' drops (ip -s link) on {first} and {second}",
        )
    return None


def _address(node: Node) -> str:
    return node.description.underlay_address if node.description is not None else ""


def _answers(node: Node) -> bool:
    return node.description is None or node.description.answers_probes


def _mtu(node: Node) -> int:
    return node.description.mtu if node.description is not None else 1500


def explain_health(view: View, network: Network, paths: Mapping[tuple[str, str], PathState]) -> NetworkHealth:
    """The matrix of one network."""
    nodes = hosts_of(view, network)
    found: list[HealthPath] = []
    problems: list[HealthProblem] = []
    for a in nodes:
        for b in nodes:
            if a.id == b.id:
                continue
            p = paths.get((a.id, b.id))
            why = ""
            if not _answers(b) and (p is None or p.state in ("down", "new")):
                p, why = None, WHY_NOT
            found.append(
                HealthPath(
                    from_=name_of(a),
                    to=name_of(b),
                    state=p.state if p is not None else "unmeasured" if why else "unknown",
                    loss=p.loss if p is not None else 0,
                    rtt_us=p.rtt if p is not None else 0,
                    jitter_us=p.jitter if p is not None else 0,
                    mtu=p.mtu if p is not None else 0,
                    checksum=p.checksum if p is not None else "",
                    fragments=p.fragments if p is not None else "",
                    since=p.since if p is not None else 0,
                    why=why,
                )
            )
            problem = explain_path(a, b, p, paths.get((b.id, a.id)))
            if problem is not None:
                problems.append(problem)
    known = [p.mtu for p in found if p.mtu]
    overhead = max((tunnel_overhead(_address(n)) for n in nodes), default=0)
    return NetworkHealth(
        id=network.id,
        name=network.spec.name,
        container_mtu=min(known) - overhead if known else 0,
        hosts=tuple(
            HealthHost(id=n.id, name=name_of(n), address=_address(n), state=n.status.state.word)
            for n in nodes
        ),
        paths=tuple(found),
        problems=tuple(problems),
    )


def plan_notice(view: View, node_id: str, before: PathState | None, now: PathState) -> Notice | None:
    """What a change of one path is worth saying."""
    a, b = view.get(Node, node_id), view.get(Node, now.node)
    if a is None or b is None:
        return None
    names = {"from": name_of(a), "to": name_of(b), "from.address": _address(a), "to.address": _address(b)}
    if now.state == "down" and not _answers(b):
        return None
    if now.state == "down" and (before is None or before.state != "down"):
        action = "path_broken"
    elif before is not None and before.state == "down" and now.state != "down":
        action = "path_mended"
    elif (
        before is not None
        and now.mtu
        and now.mtu != before.mtu
        and (before.mtu or now.mtu < min(_mtu(a), _mtu(b)))
    ):
        action, names["mtu.old"], names["mtu.new"] = "path_mtu", str(before.mtu), str(now.mtu)
    elif (
        now.fragments == "lost"
        and (before is None or before.fragments != "lost")
        and now.mtu >= min(_mtu(a), _mtu(b))
    ):
        action = "path_fragments"
    elif now.checksum in ("bad", "mended") and (before is None or before.checksum != now.checksum):
        action, names["checksum"] = "path_checksum", now.checksum
    else:
        return None
    problem = explain_path(a, b, now, None)
    if problem is not None:
        names |= {"reason": problem.reason, "remedy": problem.remedy}
    return Notice(action=action, id=f"{names['from']}>{names['to']}", attributes=names)


class PathBook:
    """`view` gives the store's current view."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view
        self._paths: dict[tuple[str, str], PathState] = {}
        self._hearers: list[Callable[[Notice], None]] = []

    def put(self, node_id: str, message: Paths) -> None:
        """A node's report."""
        if message.complete:
            said = {p.node for p in message.paths}
            for pair in [pair for pair in self._paths if pair[0] == node_id and pair[1] not in said]:
                del self._paths[pair]
        view = self._view()
        for path in message.paths:
            before = self._paths.get((node_id, path.node))
            self._paths[(node_id, path.node)] = path
            notice = plan_notice(view, node_id, before, path)
            if notice is not None:
                log.warning(notice.action, **{k: v for k, v in notice.attributes.items() if k != "event"})
                for hear in list(self._hearers):
                    hear(notice)

    def silent(self, node_id: str) -> None:
        """Its session ended: what it said is no longer kept up."""
        for pair in [pair for pair in self._paths if pair[0] == node_id]:
            del self._paths[pair]

    def all(self) -> Mapping[tuple[str, str], PathState]:
        return self._paths

    def health(self, network: Network) -> NetworkHealth:
        return explain_health(self._view(), network, self._paths)

    def watch(self, hear: Callable[[Notice], None]) -> Callable[[], None]:
        self._hearers.append(hear)
        return lambda: self._hearers.remove(hear)


def explain_paths_of(view: View, hosts: Iterable[str], paths: Mapping[tuple[str, str], PathState]) -> str:
    """One sentence for each broken way to or from these hosts (names); empty: none is known."""
    wanted = set(hosts)
    found: dict[frozenset[str], str] = {}
    for (a, b), state in paths.items():
        first, second = view.get(Node, a), view.get(Node, b)
        if state.state != "down" or first is None or second is None:
            continue
        if not wanted & {name_of(first), name_of(second)}:
            continue
        problem = explain_path(first, second, state, paths.get((b, a)))
        if problem is not None:
            found.setdefault(frozenset((a, b)), f"{problem.reason}: {problem.remedy}.")
    return "\n".join(found.values())
