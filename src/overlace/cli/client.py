"""Calls to a daemon's API from the command line, with the docker CLI's ways of naming the daemon.

Owns the HTTP client (the standard library's, so that commands start fast) and `-H` / DOCKER_HOST. Must not know
what is asked for.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import click

from overlace.model.errors import Internal, InvalidArgument, OverlaceError

DEFAULT_HOST = "unix:///run/overlace/docker.sock"
F = TypeVar("F", bound=Callable[..., Any])


class EngineError(OverlaceError):
    """A daemon refused a call; `status` is its HTTP status, `reason` the daemon's own sentence."""

    def __init__(self, message: str, status: int, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or message


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


def _connection(host: str, timeout: float) -> http.client.HTTPConnection:
    kind, _, rest = host.partition("://")
    if kind == "unix" and rest:
        return _UnixConnection(rest, timeout)
    address, _, port = rest.rpartition(":")
    if kind in ("tcp", "http") and address and port.rstrip("/").isdigit():
        return http.client.HTTPConnection(address.strip("[]"), int(port.rstrip("/")), timeout=timeout)
    raise InvalidArgument(f"invalid -H {host!r}: use unix:///path/to/socket or tcp://HOST:PORT")


def call(host: str, method: str, url: str, body: object = None, *, timeout: float = 20) -> Any:
    """Make one call to the daemon at `host` (unix:// or tcp://) and return the decoded JSON (None when empty).

    Raises EngineError with the daemon's message on a status of 400 or more, Internal when nobody answers,
    InvalidArgument for a `host` that is neither.
    """
    connection = _connection(host, timeout)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, url, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        raw = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Internal(
            f"no answer from {host.removeprefix('unix://')}: {error or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    if "json" in (response.headers.get("Content-Type") or ""):
        answer = json.loads(raw) if raw.strip() else None
    else:
        answer = raw.decode(errors="replace") or None
    if response.status >= 400:
        message = answer.get("message") if isinstance(answer, dict) else answer
        raise EngineError(f"{method} {url}: {response.status} {message}", response.status, str(message or ""))
    return answer


def ask(host: str, url: str) -> Any:
    """GET for a command: a refusal is the daemon's own sentence."""
    chosen = host or os.environ.get("DOCKER_HOST", "") or DEFAULT_HOST
    try:
        return call(chosen, "GET", url)
    except EngineError as error:
        raise OverlaceError(error.reason) from None


def host_option(command: F) -> F:
    """`-H`, as docker has it."""
    return click.option(
        "-H",
        "--host",
        default="",
        metavar="HOST",
        help=f"Daemon socket: unix:///path or tcp://HOST:PORT. Default: $DOCKER_HOST, then {DEFAULT_HOST}.",
    )(command)
