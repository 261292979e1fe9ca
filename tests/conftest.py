"""What all tests share.

pytest-asyncio asks for the main thread's event loop before its first test; Python 3.11 then makes one that nobody
closes, and warnings are errors here. Saying that there is none keeps it from being made.
"""

from __future__ import annotations

import asyncio

asyncio.set_event_loop(None)
