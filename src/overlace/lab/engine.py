"""Engine API calls to a lab host's socket. The client is the command line's."""

from __future__ import annotations

from typing import Any

from overlace.cli.engine import Engine, EngineError
from overlace.model.errors import OverlaceError

__all__ = ["EngineError", "call", "ping"]


def call(path: str, method: str, url: str, body: object = None, *, timeout: float = 20) -> Any:
    """Make one call to the Engine API on the unix socket `path`. See `Engine.call`."""
    return Engine(f"unix://{path}").call(method, url, body, timeout=timeout)


def ping(path: str, timeout: float = 2) -> bool:
    """True when a daemon answers on the socket."""
    try:
        return bool(call(path, "GET", "/_ping", timeout=timeout) == "OK")
    except OverlaceError:
        return False
