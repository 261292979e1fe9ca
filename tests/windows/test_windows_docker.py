# ruff: noqa: F401, F811 - fixtures and tests are imported by name
"""Runtime docker in a Windows CPython, over a named pipe, on the stand-in for Docker on Windows.

What this shows: that it runs on Windows' Python and event loop, over a pipe as Docker serves one. Not a real Docker on
Windows: the answers are the stand-in's, the containers Linux processes, the pipe Wine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hns_bed import free_port
from oci_bed import Registry, registry, rootfs
from remote_runtime import RemoteRuntime, Worker
from runtime_worker import LENGTH
from test_oci_runtime_health_logs import test_follow_from_before_the_start_until_the_end
from test_windows_engine import (
    test_a_program_that_ended_at_once_has_nothing_to_attach,
    test_both_may_die_while_the_container_runs,
    test_exec_and_attach,
    test_folders_and_volumes_are_mounted_by_windows_paths,
    test_health_by_cmd_and_by_shell,
    test_logs_follow_across_the_streams,
    test_secrets_and_configs_are_where_windows_has_them,
    test_signals_top_and_usage,
    test_the_program_runs_from_hold_on_and_counts_from_release_on,
)
from windows_engine_bed import WINDOWS, Engine, EngineBed, engine, images

from overlace.lab.windows.build import PIPE, build_dlls
from overlace.lab.windows.wine import command, environment, program, sources, windows_path

pytestmark = pytest.mark.host
WORKER = Path(__file__).parents[1] / "host" / "runtime_worker.py"


@pytest.fixture(scope="module")
def pipe(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`npipe://…` of the stand-in."""
    folder = tmp_path_factory.mktemp("pipe")
    build_dlls(folder)
    name = f"docker_engine_{engine.port}"
    argv = program(folder / PIPE, [f"\\\\.\\pipe\\{name}", str(engine.port)])
    with (folder / "pipe.txt").open("wb") as output:
        process = subprocess.Popen(
            argv, env={**os.environ, **environment()}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield f"npipe:////./pipe/{name}"
    finally:
        process.terminate()
        process.wait(30)


class RemoteBed(EngineBed):
    def __init__(self, root: Path, registry: Registry, engine: Engine, worker: Worker, pipe: str) -> None:
        self.worker, self.pipe = worker, pipe
        super().__init__(root, registry, engine)

    def make(self) -> RemoteRuntime:  # type: ignore[override]  # the same verbs
        data, run = (windows_path(p) for p in (self.data_root, self.exec_root))
        return RemoteRuntime(self.worker, self.pipe, data, run, WINDOWS)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a worker in a Windows Python."""
    said, port = tmp_path_factory.mktemp("python") / "said.txt", free_port(None)
    argv = command(WORKER, [str(port), *sources()], said)
    process = subprocess.Popen(argv, env={**os.environ, **environment()})
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(said.read_text())
        yield port
        with socket.create_connection(("127.0.0.1", port)) as last:
            data = pickle.dumps((0, 0, "end", (), {}))
            last.sendall(len(data).to_bytes(LENGTH, "big") + data)
            last.recv(1)
        process.wait(30)
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
async def bed(
    registry: Registry, engine: Engine, pipe: str, python: int, tmp_path: Path
) -> AsyncIterator[RemoteBed]:
    worker = Worker(*await asyncio.open_connection("127.0.0.1", python))
    try:
        made = RemoteBed(tmp_path, registry, engine, worker, pipe)
        await made.runtime.open()
        await made.runtime.pull(made.image, WINDOWS)
        yield made
        await made.clean()
    finally:
        await worker.close()


async def test_it_is_a_windows_python_and_needs_nothing_of_linux(bed: RemoteBed) -> None:
    platform, version, modules = await bed.worker.call(0, "python")
    assert platform == "win32" and "MSC" in version
    assert not {"fcntl", "pwd", "grp", "termios", "resource", "pyroute2"} & set(modules)
    assert not {m for m in modules if m.startswith("overlace.network")}
