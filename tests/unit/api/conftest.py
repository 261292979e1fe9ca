"""A server on a unix socket with the double of a daemon behind it, and the docker CLIs of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from overlace.api.server import ApiServer

from .doubles import FakeBackend, Puppets


class Result(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str


class Api:
    """A client of the server: `get("/info")` gives (status, decoded body, headers)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[int, Any, dict[str, str]]:
        data: Any = None
        headers = options.pop("headers", {})
        if body is not None:
            data = io.BytesIO(body) if isinstance(body, bytes) else msgspec.json.encode(body)
            headers = {"Content-Type": "application/json"} | headers
        url = f"http://docker{path}"
        async with self.session.request(method, url, data=data, headers=headers, **options) as response:
            raw = await response.read()
            kind = response.headers.get("Content-Type", "")
            content: Any = raw
            if kind.startswith("application/json") and raw:
                assert raw.endswith(b"\n")
                lines = [msgspec.json.decode(line) for line in raw.splitlines()]
                content = lines[0] if len(lines) == 1 else lines
            return response.status, content, dict(response.headers)


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    folder = tmp_path / "standalone"
    folder.mkdir()
    return FakeBackend(folder)


@pytest.fixture
async def server(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[str]:
    """The socket's path."""
    path = tmp_path / "docker.sock"
    server = ApiServer(backend)
    await server.start([f"unix://{path}"])
    yield str(path)
    await server.close()


@pytest.fixture
async def api(server: str) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(server)) as session:
        yield Api(session)


@pytest.fixture
async def swarm(api: Api, backend: FakeBackend) -> AsyncIterator[Api]:
    """The same, with a swarm whose tasks run as soon as they are asked for."""
    status, _, _ = await api("POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377"})
    assert status == 200
    assert backend.manager is not None
    puppets = asyncio.create_task(Puppets(backend.manager.store).run())
    yield api
    puppets.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await puppets


def docker_clis() -> list[str]:
    """Every docker CLI of this machine, each once: distributions and Docker's own differ by years."""
    found = [shutil.which("docker", path=p) for p in os.environ.get("PATH", "").split(os.pathsep)]
    return list({os.path.realpath(p): p for p in reversed(found) if p}.values())


Docker = Callable[..., Awaitable[Result]]


@pytest.fixture(
    params=docker_clis() or [pytest.param("", marks=pytest.mark.skip(reason="no docker CLI here"))]
)
def docker(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Docker:
    """`await docker("node", "ls")`, with each CLI in turn."""
    environment = {
        "DOCKER_HOST": f"unix://{server}",
        "HOME": str(tmp_path),
        "DOCKER_CONFIG": str(tmp_path / "config"),
        "PATH": os.environ["PATH"],
    }

    async def run(*words: str, stdin: str = "", timeout: float = 30) -> Result:
        process = await asyncio.create_subprocess_exec(
            request.param,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        ending = asyncio.get_running_loop().call_later(timeout, process.terminate)
        out, err = await process.communicate(stdin.encode())
        ending.cancel()
        code = process.returncode
        assert code is not None
        return Result(code, out.decode(), err.decode())

    return run
