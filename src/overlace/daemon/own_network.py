"""This host's own network while it is in no swarm: what `docker run` on one machine needs.

Owns one overlay driver without a swarm's view, opened when the first container asks for it. A membership opens its own
driver on the same state, so this one is closed before. Must not decide about containers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from overlace.daemon.drivers import HostDriver
from overlace.model.errors import InvalidArgument, OverlaceError, Unavailable
from overlace.model.netview import NetView

NODE = "standalone"  # stands for the node's id where there is no swarm


class OwnNetwork:
    """`make` builds a driver; it raises InvalidArgument when this host has no address to build on."""

    def __init__(self, make: Callable[[], HostDriver]) -> None:
        self._make = make
        self._open: HostDriver | None = None
        self._lock = asyncio.Lock()

    async def driver(self) -> HostDriver:
        """Opened now if it is not. Raises Unavailable with the reason."""
        async with self._lock:
            if self._open is None:
                try:
                    driver = self._make()
                    await driver.open(NODE)
                    await driver.apply_view(NetView(), None)
                except InvalidArgument as error:
                    raise Unavailable(
                        f"this host's network cannot be set up: {error.message.partition('; say which')[0]}; start the "
                        "daemon with --underlay-address, or run the container with --network host or none"
                    ) from error
                except OSError as error:
                    raise Unavailable(f"this host's network cannot be set up: {error}") from error
                except OverlaceError:
                    await driver.close()
                    raise
                self._open = driver
            return self._open

    async def close(self) -> None:
        """Let go; traffic goes on."""
        async with self._lock:
            driver, self._open = self._open, None
            if driver is not None:
                await driver.close()
