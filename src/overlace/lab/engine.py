"""A few Engine API calls to a lab host's socket, with time limits.

Owns the lab's HTTP client: the standard library's, so that `lab` starts fast. Must not decide anything.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from overlace.model.errors import Internal, OverlaceError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class EngineError(OverlaceError):
    """A daemon refused a call; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def call(path: str, method: str, url: str, body: object = None, *, timeout: float = 20) -> Any:
    """Make one call to the Engine API on the unix socket `path` and return the decoded JSON (None when
    empty).

    Raises EngineError with the daemon's message on a status of 400 or more, Internal when nobody answers.
    """
    connection = _UnixConnection(path, timeout)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, url, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        raw = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Internal(f"no answer from {path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if "json" in (response.headers.get("Content-Type") or ""):
        answer = json.loads(raw) if raw.strip() else None
    else:
        answer = raw.decode(errors="replace") or None
    if response.status >= 400:
        message = answer.get("message") if isinstance(answer, dict) else answer
        raise EngineError(f"{method} {url}: {response.status} {message}", response.status)
    return answer


def ping(path: str, timeout: float = 2) -> bool:
    """True when a daemon answers on the socket."""
    try:
        return bool(call(path, "GET", "/_ping", timeout=timeout) == "OK")
    except OverlaceError:
        return False
