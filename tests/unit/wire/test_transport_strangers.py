"""Strangers at the port: who says nothing, or not enough, does not hold a connection for long."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from overlace.model.ids import new_id
from overlace.security.ca import CertificateAuthority
from overlace.security.identity import found_identity
from overlace.security.tls import peer_of, server_context, unverified_context
from overlace.wire import transport_server
from overlace.wire.transport import Certificate, JoinRequest, ManagerChannel, RenewRequest
from overlace.wire.transport_server import TransportServer

NS_PER_DAY = 24 * 3600 * 1_000_000_000


class Nobody:
    def ca(self) -> str:
        return "pem"

    async def join(self, request: JoinRequest, address: str) -> Certificate:
        raise AssertionError("nobody joins here")

    async def renew(self, peer: Any, request: RenewRequest) -> Certificate:
        raise AssertionError("nobody renews here")

    def admit(self, peer: Any) -> None: ...


async def no_session(peer: Any, address: str, channel: ManagerChannel) -> None: ...


@pytest.fixture
async def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    for name in ("HANDSHAKE_SECONDS", "REQUEST_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(transport_server, name, 0.2)
    now = time.time_ns()
    ca = CertificateAuthority.create(now)
    identity = found_identity(
        tmp_path, ca, node_id=new_id(), cluster_id=new_id(), now=now, life_ns=90 * NS_PER_DAY
    )
    server = TransportServer(Nobody(), no_session, server_context(identity), peer_of)
    await server.start("127.0.0.1", 0)
    yield server.port
    await server.close()


def context() -> ssl.SSLContext:
    return unverified_context()


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        (False, b""),
        (False, b"GET / HTTP/1.1\r\n\r\n"),
        (True, b""),
        (True, b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nX-Slow"),
        (True, b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"),
        (True, b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n"),  # answered, then silent
    ],
)
async def test_silence_ends_the_connection(port: int, tls: bool, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context() if tls else None)
    try:
        writer.write(said)
        async with asyncio.timeout(5):
            try:
                answer = await reader.read()
            except OSError:
                answer = b""
    finally:
        writer.close()
    if b"Host: x\r\n\r\n" in said:
        assert answer.endswith(b"pem")
    if b"join" in said:
        assert b"400" in answer and b"did not come in time" in answer
