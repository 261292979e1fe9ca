"""The versions this API speaks and the program's own. Owns the numbers; must not know HTTP.

1.51 is the last Engine API version before container inspect, events and disk usage change shape (1.52).
"""

from __future__ import annotations

from overlace import __version__

API_VERSION = (1, 51)
MIN_API_VERSION = (1, 24)
SERVER_VERSION = __version__


def version_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
