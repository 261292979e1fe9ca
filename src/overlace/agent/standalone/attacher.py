"""Addresses on attachable networks for standalone containers: asked of a manager, given with the network view.

Owns what this node asks for, which is told as a whole whenever it changes or a manager is new, so that nothing is asked
twice or kept for good by a lost message. Must not make interfaces.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from overlace.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
    Unavailable,
)
from overlace.model.ids import ID_LENGTH, base36
from overlace.model.netview import EndpointEntry, NetView, NetworkEntry
from overlace.wire.messages import Attachment

GIVEN_SECONDS = 20.0  # moby daemon/cluster/networks.go swarmRequestTimeout
AGAIN_SECONDS = 2.0  # an answer may be lost with its manager: ask again
_ERRORS: dict[str, type[OverlaceError]] = {
    e.code: e for e in (FailedPrecondition, InvalidArgument, NotFound, PermissionDenied)
}


class Given(msgspec.Struct, frozen=True):
    """A place on a network: the network's name and id, the addresses with prefix length."""

    network: str
    network_id: str
    addresses: tuple[str, ...]


class Member(msgspec.Struct, frozen=True):
    """This node in a swarm. `announce()` has the whole list told to the manager."""

    node_id: str
    view: Callable[[], NetView]
    announce: Callable[[], None]


def attachment_id(container_id: str, target: str, turn: int) -> str:
    """The same for the same container, network and turn, so that a crash asks for nothing twice, and what is still seen
    of an earlier turn is not taken for this one's."""
    digest = hashlib.sha256(f"attachment {container_id} {target} {turn}".encode()).digest()
    return base36(int.from_bytes(digest[:16], "big"), ID_LENGTH)


def find_given(view: NetView, id: str, prefix: Callable[[NetworkEntry, str], int]) -> Given | None:
    """Where an attachment is, once the view has it and its network."""
    for network in view.of(NetworkEntry):
        entry = view.get(f"endpoint/{network.id}/{id}")
        if isinstance(entry, EndpointEntry):
            addresses = (f"{a}/{prefix(network, a)}" for a in entry.addresses)
            return Given(network.name, network.id, tuple(addresses))
    return None


def is_stale(entry: object, node_id: str, wanted: Mapping[str, Attachment]) -> bool:
    """Whether the swarm keeps this address for a container of ours that has given it back."""
    return (
        isinstance(entry, EndpointEntry)
        and entry.node_id == node_id
        and not entry.service_id
        and entry.task_id not in wanted
    )


class Attacher:
    """`prefix(network, address)`: length of the prefix of the subnet an address is in."""

    def __init__(self, prefix: Callable[[NetworkEntry, str], int]) -> None:
        self._prefix = prefix
        self._wanted: dict[str, Attachment] = {}
        self._refused: dict[str, tuple[str, str]] = {}
        self._member: Member | None = None
        self._news = asyncio.Event()
        self._returning: asyncio.Task[None] | None = (
            None  # tells until the swarm has taken back what was given back
        )

    # -- the node in a swarm -------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """The node is in a swarm: `member` is how to be heard there."""
        self._member = member

    def quit(self) -> None:
        """The node leaves: every address is given back."""
        self._wanted.clear()
        if self._member is not None:
            self._member.announce()
        self._member = None
        self._tell()

    def to_tell(self) -> tuple[Attachment, ...] | None:
        """What a new manager has to hear; None: nothing of ours can be there."""
        return tuple(self._wanted.values()) if self._wanted or self._is_owing() else None

    def _is_owing(self) -> bool:
        """Whether the swarm keeps addresses that were given back."""
        member = self._member
        return member is not None and any(
            is_stale(e, member.node_id, self._wanted) for e in member.view().of(EndpointEntry)
        )

    def _give_back(self) -> None:
        """Tell it, and again while the swarm keeps an address: what was told may be lost with its manager."""
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._tell_until_heard(), name="attachments given back")
        elif self._member is not None:
            self._member.announce()

    async def _tell_until_heard(self) -> None:
        if self._member is not None:
            self._member.announce()
        await asyncio.sleep(AGAIN_SECONDS)
        while self._is_owing() and self._member is not None:
            self._member.announce()
            await asyncio.sleep(AGAIN_SECONDS)

    def view_changed(self, keys: Iterable[str]) -> None:
        """These are otherwise now, and the host's network follows."""
        member = self._member
        if member is None:
            return
        view = member.view()
        if any(
            is_stale(view.get(k), member.node_id, self._wanted) for k in keys if k.startswith("endpoint/")
        ):
            self._give_back()
        self._tell()

    def refused(self, refused: Mapping[str, tuple[str, str]]) -> None:
        """The manager's word, by attachment: (name of the error, its message)."""
        self._refused.update({i: r for i, r in refused.items() if i in self._wanted})
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # -- containers ----------------------------------------------------------------------------------------------

    def want(self, wanted: Sequence[Attachment]) -> None:
        """Ask for these, too, from now on."""
        for one in wanted:
            self._refused.pop(one.id, None)
        if any(self._wanted.get(one.id) != one for one in wanted):
            self._wanted.update({one.id: one for one in wanted})
            if self._member is not None:
                self._member.announce()

    def drop(self, ids: Iterable[str]) -> None:
        """Give these back. Unknown ones: no error."""
        gone = [id for id in ids if self._wanted.pop(id, None) is not None]
        if gone and self._member is not None:
            self._give_back()

    async def given(self, wanted: Sequence[Attachment], seconds: float = GIVEN_SECONDS) -> list[Given]:
        """Where these are, once the swarm has said. Raises what it refuses in Docker's words, Unavailable after
        `seconds`."""
        self.want(wanted)
        try:
            async with asyncio.timeout(seconds):
                return [await self._one(one) for one in wanted]
        except TimeoutError:
            names = ", ".join(one.target for one in wanted)
            raise Unavailable(
                f"Could not attach to network {names}: no manager gave an address within {seconds:g} s: check that one "
                "can be reached (docker node ls on a manager)"
            ) from None

    async def _one(self, one: Attachment) -> Given:
        while True:
            news = self._news
            if self._member is None:
                raise NotFound(f"network {one.target} not found")
            found = find_given(self._member.view(), one.id, self._prefix)
            if found is not None:
                return found
            if one.id in self._refused:
                code, words = self._refused[one.id]
                raise _ERRORS.get(code, FailedPrecondition)(
                    f"Could not attach to network {one.target}: rpc error: code = {code} desc = {words}"
                )
            try:
                await asyncio.wait_for(news.wait(), AGAIN_SECONDS)
            except TimeoutError:
                if self._member is not None:
                    self._member.announce()
