"""What all tests share.

pytest-asyncio asks for the main thread's event loop before its first test; Python 3.11 then makes one that nobody
closes, and warnings are errors here. Saying that there is none keeps it from being made.

Exceptions in logs are plain text, as in the daemon: structlog's default draws them with every local variable, which on a
busy machine holds an event loop up for seconds.
"""

from __future__ import annotations

import asyncio

import structlog

asyncio.set_event_loop(None)
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(key_order=["level", "event"]),
    ]
)
