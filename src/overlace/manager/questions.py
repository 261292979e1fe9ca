"""Questions to agents that want an answer now: `overlace trace` asks hosts what only they can see.

Owns the questions under way. Must not know what they are about.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from overlace.model.findings import Question, Said
from overlace.wire.messages import Answer, Ask, ManagerMessage

SECONDS = 5.0


class Questions:
    """`send(node id, message)` is False when the node has no session here."""

    def __init__(self, send: Callable[[str, ManagerMessage], bool]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[Said]]] = {}

    async def ask(self, node_id: str, question: Question, seconds: float = SECONDS) -> Said:
        """Never raises: a node that does not answer is an answer too."""
        number = next(self._numbers)
        waiting: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (node_id, waiting)
        try:
            if not self._send(node_id, Ask(number, question)):
                return Said(error="it has no session with this manager")
            async with asyncio.timeout(seconds):
                return await waiting
        except TimeoutError:
            return Said(error=f"it did not answer within {seconds:g} s")
        finally:
            self._waiting.pop(number, None)

    def answered(self, node_id: str, message: Answer) -> None:
        found = self._waiting.get(message.number)
        if found is not None and found[0] == node_id and not found[1].done():
            found[1].set_result(message.said)

    def gone(self, node_id: str) -> None:
        """Its session ended."""
        for asked, waiting in list(self._waiting.values()):
            if asked == node_id and not waiting.done():
                waiting.set_result(Said(error="its session ended"))
