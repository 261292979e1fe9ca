"""Something is done about a container again and again until it works. Must not know what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from overlace.agent.standalone.slot import Slot
from overlace.model.errors import NotFound, OverlaceError

log = structlog.get_logger(__name__)
RETRY_SECONDS = (1.0, 30.0)  # first and longest pause before what failed is tried again


async def persist(slot: Slot, look: Callable[[Slot], Awaitable[None]], is_there: Callable[[], bool]) -> None:
    """Until `look` ends without an error, says that the container is gone (NotFound), or `is_there()` no more."""
    pause, told = RETRY_SECONDS[0], ""
    while is_there():
        try:
            await look(slot)
            return
        except NotFound:
            return  # removed meanwhile
        except OverlaceError as error:
            if error.message != told:
                told = error.message
                log.warning("a container could not be followed, will retry", id=slot.id, error=told)
        except Exception:
            log.exception("following a container failed, will retry", id=slot.id)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS[1])
