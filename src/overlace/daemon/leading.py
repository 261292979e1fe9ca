"""What only the manager that leads runs: control, loop, dispatcher, logs, over one store.

Owns starting them together and ending them together; a new one is made each time this manager gains leadership. Must
not know how leadership is won.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from overlace.manager.attachments import AttachmentDesk
from overlace.manager.control import Control
from overlace.manager.dispatch import Dispatcher
from overlace.manager.logs import LogBroker
from overlace.manager.loop import ManagerLoop
from overlace.manager.paths import PathBook
from overlace.manager.registry import Resolver
from overlace.store.base import Store


class Leading:
    def __init__(
        self, store: Store, resolver: Resolver, hostname: str, check_promotion: Callable[[], None]
    ) -> None:
        self.control = Control(store, resolver=resolver, check_promotion=check_promotion)
        self.dispatcher = Dispatcher(store, hostname=hostname)
        self.logs = LogBroker(store, self.dispatcher)
        self.paths = PathBook(store.view)
        self.dispatcher.on_paths = self.paths.put
        self.dispatcher.on_log = self.logs.on_log
        self.dispatcher.on_session = self._on_session
        self.attachments = AttachmentDesk(store, self.dispatcher.send)
        self.dispatcher.on_attachments = self.attachments.asked
        self.dispatcher.on_attached = self.attachments.blocked
        self._loop = ManagerLoop(store)
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises Unavailable when the store refuses."""
        await self.dispatcher.start()
        self._running = asyncio.create_task(self._loop.run(), name="manager loop")

    async def close(self) -> None:
        """Stop deciding; agents go on without us."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.dispatcher.close()
        await self.attachments.close()

    def _on_session(self, node_id: str, connected: bool) -> None:
        if connected:
            self.logs.on_connect(node_id)
        else:
            self.paths.silent(node_id)
