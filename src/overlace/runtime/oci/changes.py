"""Telling any number of listeners which containers changed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator


class Subscription(AsyncIterator[str]):
    """Ids that changed since the subscription was made; an id waiting to be read is told once."""

    def __init__(self, feed: ChangeFeed) -> None:
        self._feed = feed
        self._waiting: dict[str, None] = {}
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, container_id: str) -> None:
        self._waiting[container_id] = None
        self._ready.set()

    def end(self) -> None:
        self._closed = True
        self._ready.set()

    async def aclose(self) -> None:
        """Stop listening."""
        self.end()
        self._feed.drop(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> str:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        container_id = next(iter(self._waiting))
        del self._waiting[container_id]
        return container_id


class ChangeFeed:
    """Listeners are held weakly: one that was dropped without being closed costs nothing."""

    def __init__(self) -> None:
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def subscribe(self) -> Subscription:
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def put(self, container_id: str) -> None:
        for subscription in list(self._subscriptions):
            subscription.put(container_id)

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.end()
