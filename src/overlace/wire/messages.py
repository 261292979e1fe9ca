"""Every message between a manager and an agent, and their codec (MessagePack through msgspec).

Owns the protocol's words. One websocket over mutual TLS carries them both ways; the agent opens it. Must not know
sockets, stores or what either side does with a message.

A session: agent sends Hello; manager answers Welcome, then Assignments(complete) and NetworkUpdate(base 0), in any order,
then deltas. The agent sends Heartbeat each `heartbeat` ns, which the manager answers with an Ack so that each knows the
other alive, and Reports as tasks move. Either side may close; the agent reconnects with back-off and says Hello again.
Welcome comes again when the node's role, the list of managers or the heartbeat period changes.
"""

from __future__ import annotations

from typing import Literal, Union

import msgspec

from overlace.model.findings import Question, Said
from overlace.model.netview import NetDelta
from overlace.model.objects import Config, NodeDescription, Secret, Task, TaskStatus
from overlace.model.paths import PathState

PROTOCOL = 1


# -- agent -> manager --------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    description: NodeDescription
    protocol: int = PROTOCOL


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    description: NodeDescription | None = None  # when it changed since the last one


class TaskReport(msgspec.Struct, frozen=True):
    task_id: str
    status: TaskStatus


class Reports(msgspec.Struct, frozen=True, tag="reports"):
    """A batch of observed states; acknowledged by Ack(sequence) once stored, repeated after a reconnect if not."""

    sequence: int
    reports: tuple[TaskReport, ...]


class Resync(msgspec.Struct, frozen=True, tag="resync"):
    """A delta did not fit: send complete ones."""

    what: Literal["assignments", "network"]


class LogChunk(msgspec.Struct, frozen=True, tag="log"):
    subscription: str
    task_id: str
    lines: tuple[tuple[int, str, bytes], ...] = ()  # (timestamp ns, stdout|stderr, data)
    end: bool = False  # this task has no more to give
    error: str = ""


class Paths(msgspec.Struct, frozen=True, tag="paths"):
    """What this node measured of the way to others. `complete` replaces all it said before; otherwise these changed."""

    paths: tuple[PathState, ...]
    complete: bool = False


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """To the manager's Ask of that number."""

    number: int
    said: Said


class Attachment(msgspec.Struct, frozen=True):
    """An address a node asks for, for a container outside of services, as long as the node names it."""

    id: str  # of the task that will stand for it: the same for the same container and network
    container_id: str
    name: str  # of the container
    target: str  # network, by id or name
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # asked for, without prefix length, at most one per family
    labels: dict[str, str] = {}  # of the container's, those the swarm heeds: overlace.policy.*


class Attachments(msgspec.Struct, frozen=True, tag="attachments"):
    """All of the node's: those it named before and names no longer are given back. Given ones come with the view."""

    wanted: tuple[Attachment, ...]


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The node leaves the swarm on purpose."""


# -- manager -> agent --------------------------------------------------------------------------------------------


class Manager(msgspec.Struct, frozen=True):
    node_id: str
    addr: str  # host:port


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    node_id: str
    heartbeat: int  # ns
    role: str
    managers: tuple[Manager, ...]
    hostname: str = ""  # of the manager


class Assignments(msgspec.Struct, frozen=True, tag="assignments"):
    """What the node must run. `complete` replaces everything; otherwise `sequence` follows the last one by 1.

    A task is removed from the node's set once the manager has nothing more to say about it; until then its
    `desired_state` tells the agent to run, stop (SHUTDOWN) or remove (REMOVE) it. Secrets and configs come with the
    tasks that need them and are withdrawn with the last one.
    """

    sequence: int
    complete: bool
    tasks: tuple[Task, ...] = ()
    remove_tasks: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    remove_secrets: tuple[str, ...] = ()
    configs: tuple[Config, ...] = ()
    remove_configs: tuple[str, ...] = ()
    registry_auth: dict[str, str] = {}  # by service id


class NetworkUpdate(msgspec.Struct, frozen=True, tag="network"):
    delta: NetDelta


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """All Reports of this session up to `sequence` are stored (0: none yet)."""

    sequence: int


class LogSubscribe(msgspec.Struct, frozen=True, tag="logsub"):
    subscription: str
    task_ids: tuple[str, ...]
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: int = 0
    until: int = 0
    tail: int = -1


class LogUnsubscribe(msgspec.Struct, frozen=True, tag="logunsub"):
    subscription: str


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Something only the node itself can see; answered in any order."""

    number: int
    question: Question


class NotAttached(msgspec.Struct, frozen=True, tag="notattached"):
    """Why attachments the node asked for are not given, by id; the code is an error's (model.errors)."""

    refused: dict[str, tuple[str, str]]  # (code, words)


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The manager will not serve this node: removed, wrong protocol. The agent stops trying when `final`.

    `elsewhere`: this manager does not lead; `leader` (host:port) does, when that is known."""

    reason: str
    final: bool = False
    elsewhere: bool = False
    leader: str = ""


AgentMessage = Union[Hello, Heartbeat, Reports, Resync, LogChunk, Paths, Answer, Attachments, Leaving]
ManagerMessage = Union[
    Welcome, Assignments, NetworkUpdate, Ack, LogSubscribe, LogUnsubscribe, Ask, NotAttached, Refused
]

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
_from_manager: msgspec.msgpack.Decoder[ManagerMessage] = msgspec.msgpack.Decoder(ManagerMessage)


def encode(message: AgentMessage | ManagerMessage) -> bytes:
    return _encoder.encode(message)


def decode_agent(frame: bytes) -> AgentMessage:
    """Raises msgspec.DecodeError with a path when the frame is not a message of the agent's."""
    return _from_agent.decode(frame)


def decode_manager(frame: bytes) -> ManagerMessage:
    """Raises msgspec.DecodeError with a path when the frame is not a message of the manager's."""
    return _from_manager.decode(frame)
