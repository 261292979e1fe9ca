"""A few Engine API calls to a lab host's socket, with time limits.

Owns nothing but the lab's short names for them. Must not decide anything.
"""

from __future__ import annotations

from typing import Any

from overlace.cli import client
from overlace.cli.client import EngineError
from overlace.model.errors import OverlaceError

__all__ = ["EngineError", "call", "ping"]


def call(path: str, method: str, url: str, body: object = None, *, timeout: float = 20) -> Any:
    """`client.call` to the unix socket `path`."""
    return client.call(f"unix://{path}", method, url, body, timeout=timeout)


def ping(path: str, timeout: float = 2) -> bool:
    """True when a daemon answers on the socket."""
    try:
        return bool(call(path, "GET", "/_ping", timeout=timeout) == "OK")
    except OverlaceError:
        return False
