"""What a person should hear of this host's network, kept until whoever shows events has read it.

Owns the last ones and their order. Must not judge what is worth saying.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import dropwhile

import structlog

from overlace.model.paths import Notice

KEPT = 256
log = structlog.get_logger(__name__)


class Notices:
    """Each with when it came, ns since the epoch, no two at once."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Notice]] = deque(maxlen=KEPT)

    def put(self, notice: Notice) -> None:
        """Keep it, and write it into the log."""
        log.warning(f"network: {notice.action.replace('_', ' ')}", about=notice.id, **notice.attributes)
        last = self._kept[-1][0] if self._kept else 0
        self._kept.append((max(time.time_ns(), last + 1), notice))

    def since(self, after: int) -> list[tuple[int, Notice]]:
        """Those that came later than `after`, the oldest first."""
        return list(dropwhile(lambda one: one[0] <= after, self._kept))
