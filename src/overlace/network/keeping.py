"""The life of tasks' places on a host's network, the same on both operating systems: admitted once, made again and again
with the same result, given back.

Owns the order of these steps and that what failed is given back. How a place is made is a driver's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from overlace.model.netview import NetView
from overlace.network.admission import Admission, check_networks
from overlace.network.base import Attached, TaskNetwork
from overlace.network.records import Record, Records
from overlace.network.turns import Turns


class Keeping:
    """`seen()`: the view so far; `forget`: gives back what a record stands for, and removes it."""

    def __init__(
        self,
        records: Records,
        admission: Admission,
        seen: Callable[[], NetView],
        forget: Callable[[Record], Awaitable[None]],
    ) -> None:
        self._records = records
        self._admission = admission
        self._seen = seen
        self._forget = forget
        self._turns = Turns()

    async def attach(
        self,
        task: TaskNetwork,
        admit: Callable[[], Awaitable[Record]],
        connect: Callable[[Record], Awaitable[Attached]],
        change: Callable[[Record], Awaitable[Record | None]] | None = None,
    ) -> Attached:
        """`admit`: checks and keeps the wish; `connect`: makes it so. `change`: puts a running task with another wish on
        other networks, None when it differs in more; without it, such a task is made anew."""
        async with self._turns.of(task.task_id):
            record = self._admission.admitted(task)
            if record is None and (other := self._records.get(task.task_id)) is not None:
                record = await change(other) if change is not None else None
                if record is None:
                    await self._forget(other)
            if record is not None:
                check_networks(task, self._seen())
                return await connect(record)
            record = await admit()
            try:
                return await connect(record)
            except BaseException:
                await asyncio.shield(self._forget(record))
                raise

    async def detach(self, task_id: str) -> None:
        """Unknown task: no error."""
        async with self._turns.of(task_id):
            record = self._records.get(task_id)
            if record is not None:
                await self._forget(record)

    async def keep_only(self, task_ids: set[str]) -> None:
        """Give every other task's back."""
        gone = [t for t in self._records.ids() if t not in task_ids]
        await asyncio.gather(*(self.detach(t) for t in gone))
