"""A container in the runtime's memory: its record, and what waits on it. Must not start or stop anything."""

from __future__ import annotations

import asyncio
from typing import Protocol

from overlace.runtime.base import Container
from overlace.runtime.oci.records import Places, Record


class Early(Protocol):
    """Somebody who attached to a container before it ran."""

    async def connect(self) -> None: ...

    def give_up(self) -> None: ...


class Slot:
    """One container. `stopped` is set while it does not run (created, exited, gone); `ended` once a run is
    over and
    nothing more will be logged.
    """

    def __init__(self, record: Record, places: Places) -> None:
        self.record = record
        self.places = places
        self.stopped = asyncio.Event()
        self.ended = asyncio.Event()
        self.shim_fd = -1
        self.early: list[Early] = []  # who attached before it started
        self.health: asyncio.Task[None] | None = None
        self.reaper: asyncio.Task[None] | None = None
        self.settle()

    @property
    def id(self) -> str:
        return self.record.container.config.id

    @property
    def container(self) -> Container:
        return self.record.container

    def settle(self) -> None:
        """Make the events agree with the status."""
        status = self.container.status
        (self.stopped.clear if status == "running" else self.stopped.set)()
        (self.ended.set if status in ("exited", "dead") else self.ended.clear)()

    async def greet(self) -> None:
        """Connect who attached early: the program is made and has not begun."""
        waiting, self.early = self.early, []
        for one in waiting:
            await one.connect()

    def dismiss(self) -> None:
        """Let those go who attached early: it does not start."""
        waiting, self.early = self.early, []
        for one in waiting:
            one.give_up()

    def vanish(self) -> None:
        """Let everybody go who waits: the container is removed."""
        self.dismiss()
        self.stopped.set()
        self.ended.set()
