"""A few Engine API calls, with time limits: to the daemon the docker CLI would talk to, or one a caller names.

Owns the command line's HTTP client: the standard library's, so that commands start fast. Must not decide
anything.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import urllib.parse
from pathlib import Path
from typing import Any

from overlace.cli.context import current_context
from overlace.model.errors import Internal, InvalidArgument, OverlaceError

DEFAULT_HOST = "unix:///run/overlace/docker.sock"
_PORTS = {False: 2375, True: 2376}


class EngineError(OverlaceError):
    """A daemon refused a call; `status` is its HTTP status, `text` its own words."""

    def __init__(self, message: str, status: int, text: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.text = text


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


class Engine:
    """A daemon at `unix:///path` or `tcp://HOST:PORT`."""

    def __init__(self, host: str, *, tls: ssl.SSLContext | None = None) -> None:
        """Raises InvalidArgument for an address of another kind."""
        self.host = host
        self._tls = tls
        kind, _, rest = host.partition("://")
        if kind not in ("unix", "tcp") or not rest:
            raise InvalidArgument(f"daemon address {host!r}: use unix:///path/to/socket or tcp://HOST:PORT")
        self._unix = rest if kind == "unix" else ""
        if kind == "tcp":
            try:
                parsed = urllib.parse.urlsplit(f"//{rest}")
                self._address = parsed.hostname or "", parsed.port or _PORTS[tls is not None]
            except ValueError as error:
                raise InvalidArgument(f"daemon address {host!r}: {error}") from None

    @classmethod
    def of_user(cls, host: str = "") -> Engine:
        """`-H`, else DOCKER_HOST, else the docker CLI's context, else this host's own; DOCKER_TLS_VERIFY and
        DOCKER_CERT_PATH as the docker CLI has them."""
        host = host or os.environ.get("DOCKER_HOST") or ""
        context = None if host else current_context()
        if context is not None:
            return cls(context[0], tls=context[1])
        tls = None
        if os.environ.get("DOCKER_TLS_VERIFY"):
            folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
            try:
                tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))
                tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
            except (OSError, ssl.SSLError) as error:
                raise InvalidArgument(f"DOCKER_TLS_VERIFY is set, but {folder}: {error}") from None
        return cls(host or DEFAULT_HOST, tls=tls)

    def call(
        self,
        method: str,
        url: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        timeout: float = 20,
    ) -> Any:
        """Make one call and return the decoded JSON (None when empty).

        Raises EngineError with the daemon's message on a status of 400 or more, Internal when nobody answers.
        """
        connection = self._connection(timeout)
        sent = dict(headers or {})
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, url, payload, sent)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            where = self._unix or self.host
            hint = self._explain(error)
            raise Internal(f"no answer from {where}: {error or type(error).__name__}{hint}") from error
        finally:
            connection.close()
        if "json" in (response.headers.get("Content-Type") or ""):
            answer = json.loads(raw) if raw.strip() else None
        else:
            answer = raw.decode(errors="replace") or None
        if response.status >= 400:
            message = answer.get("message") if isinstance(answer, dict) else answer
            raise EngineError(f"{method} {url}: {response.status} {message}", response.status, str(message))
        return answer

    def _explain(self, error: Exception) -> str:
        """What to do about a daemon nobody reaches."""
        if isinstance(error, PermissionError):
            return "; be root, or a member of the group the socket belongs to"
        if not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return ""
        if self._unix and self.host == DEFAULT_HOST:
            return (
                "; no daemon runs on this host: start it (systemctl start overlace, or overlace daemon), or name another "
                "host's by -H or DOCKER_HOST (of a lab: overlace lab status shows them)"
            )
        if self._unix:
            return f"; no daemon listens there: start it (overlace daemon --host {self.host}), or correct {self._named}"
        return f"; no daemon listens there: start it on that host (systemctl start overlace), or correct {self._named}"

    @property
    def _named(self) -> str:
        """What people name the daemon by."""
        if os.environ.get("DOCKER_HOST") == self.host:
            return "DOCKER_HOST"
        return "-H or docker's context"

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._unix:
            return _UnixConnection(self._unix, timeout)
        host, port = self._address
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)
