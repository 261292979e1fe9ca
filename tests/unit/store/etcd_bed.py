"""A real etcd for tests: one member, on a unix socket, emptied between tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from overlace.store.etcd.client import EtcdClient, EtcdError, created_at, delete, put
from overlace.store.etcd.member import EtcdConfig, EtcdFiles, find_program, plan_argv
from overlace.store.etcd.store import LEADER, EtcdStore


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdBed:
    """A member without TLS: everything else as the managers run it."""

    def __init__(self) -> None:
        # memory where there is some: the tests are about what etcd says, not about the disk
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        url = f"http://127.0.0.1:{free_port()}"
        config = EtcdConfig(
            name="n1", peer_url=url, listen_url=url, cluster=(("n1", url),), state="new", token="test"
        )
        self.files = EtcdFiles(self.folder, Path("none"), Path("none"))
        self._argv = [
            a for a in plan_argv(find_program(), config, self.files) if "peer-" not in a or "urls" in a
        ]
        self.start()

    def start(self) -> None:
        self.files.socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.files.socket))
                    return
                except OSError:
                    assert self.process.poll() is None, (self.folder / "log").read_text()
                    assert time.monotonic() < deadline, "etcd does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def client(self) -> EtcdClient:
        return EtcdClient(self.files.socket)

    async def empty(self) -> None:
        client = self.client()
        try:
            for _ in range(300):
                try:
                    await client._call(
                        "/v3/kv/deleterange", {"key": "b3ZlcmxhY2Uv", "range_end": "b3ZlcmxhY2Uw"}, 5.0
                    )  # overlace/ to overlace0
                    return
                except EtcdError:
                    await asyncio.sleep(0.02)  # it has just started and elects itself
            raise AssertionError("etcd does not elect itself")
        finally:
            await client.close()


async def take_lead(client: EtcdClient) -> int:
    """Make the leader's key anew, whoever has it; returns its fence."""
    await client.txn([], [delete(LEADER)])
    return (await client.txn([created_at(LEADER, 0)], [put(LEADER, b"{}")])).revision


@asynccontextmanager
async def leading_store(bed: EtcdBed, clock: Callable[[], int]) -> AsyncIterator[EtcdStore]:
    client = bed.client()
    store = await EtcdStore.open(client, clock=clock)
    try:
        await store.lead(await take_lead(client))
        yield store
    finally:
        await store.close()
        await client.close()


@pytest.fixture(scope="session")
def etcd_bed() -> Iterator[EtcdBed]:
    bed = EtcdBed()
    yield bed
    bed.close()
