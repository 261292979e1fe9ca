"""This manager's etcd member as a process: found again, started again, closed to all but managers; and the move of a
one-manager swarm's state into it. Needs root only where the other host tests do; needs a real etcd."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from overlace.api.backend import InitRequest
from overlace.api.swarm_requests import complete_spec
from overlace.daemon import etcd_home
from overlace.daemon.manager import STORE, ManagerSide, found_swarm
from overlace.model.errors import NotLeading, Unavailable
from overlace.model.objects import Cluster, Network, Node
from overlace.model.specs import NetworkSpec, SwarmSpec
from overlace.security.ca import CertificateAuthority, new_csr, new_key_pem
from overlace.security.identity import Identity, save_identity
from overlace.security.tls import client_context
from overlace.store.etcd.client import EtcdClient
from overlace.store.etcd.election import Leader
from overlace.store.etcd.member import EtcdConfig, EtcdFiles, EtcdProcess

pytestmark = pytest.mark.host
CA = CertificateAuthority.create(time.time_ns())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def identity(root: Path, role: str) -> Identity:
    key = new_key_pem()
    issued = CA.issue(
        new_csr(key), node_id=role, role=role, cluster_id="c", now=time.time_ns(), address="127.0.0.1"
    )
    return save_identity(root / role, CA.cert_pem, key, issued.pem)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  another process's doing is awaited
            await asyncio.sleep(0.02)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[tuple[EtcdProcess, EtcdClient, str]]:
    me = identity(tmp_path, "manager")
    url = f"https://127.0.0.1:{free_port()}"
    config = EtcdConfig(
        name="n1", peer_url=url, listen_url=url, cluster=(("n1", url),), state="new", token="t"
    )
    process = EtcdProcess(config, EtcdFiles(tmp_path / "etcd", me.pair_path, me.ca_path))
    client = EtcdClient(process.files.socket)
    try:
        await process.start()
        await process.wait_ready(client, 30)
        yield process, client, url
    finally:
        await process.stop()
        await client.close()


async def test_a_member_outlives_its_daemon_and_is_found_again(
    made: tuple[EtcdProcess, EtcdClient, str],
) -> None:
    process, client, _ = made
    first = process.running()
    assert first is not None and oct(process.files.folder.stat().st_mode & 0o777) == "0o700"
    assert process._keeper is not None
    process._keeper.cancel()  # kill -9 of the daemon: nobody looks after the member
    again = EtcdProcess(process.config, process.files)  # what a daemon does that starts after a kill -9
    await again.start()
    assert again.running() == first
    os.kill(first, signal.SIGKILL)
    await until(lambda: again.running() not in (None, first))
    await again.wait_ready(client, 30)
    await again.stop()
    assert process.running() is None and not process.files.pid.exists()


async def test_only_managers_reach_the_peer_port(
    made: tuple[EtcdProcess, EtcdClient, str], tmp_path: Path
) -> None:
    _, _, url = made

    async def ask(who: Identity | None) -> int:
        tls = client_context(CA.cert_pem, who)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/version", ssl=tls) as answer:
            return answer.status

    assert await ask(identity(tmp_path / "a", "manager")) == 200
    for stranger in (identity(tmp_path / "b", "worker"), None):
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await ask(stranger)


# -- the move ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def founded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], object]]:
    """Opens the manager of a swarm with one network; all that were opened are closed at the end."""
    monkeypatch.setattr(etcd_home, "PEER_PORT", free_port())
    request = InitRequest(spec=complete_spec(SwarmSpec()))
    (tmp_path / "swarm").mkdir()
    _, me = await found_swarm(tmp_path, request, "n1", "127.0.0.1:2377")
    opened: list[ManagerSide] = []

    async def open_side() -> ManagerSide:
        side = await ManagerSide.open(
            tmp_path, me, Leader("n1", "127.0.0.1:2377"), f"127.0.0.1:{free_port()}", (), "h"
        )
        opened.append(side)
        return side

    yield open_side
    for side in opened:
        await side.close()


async def test_the_state_moves_to_etcd_once_and_stays(founded: Callable, tmp_path: Path) -> None:
    side: ManagerSide = await founded()
    await side.control.create_network(NetworkSpec(name="n"))
    before = {n.id: n for n in side.store.view().all(Network)}
    await side.become_several()
    await side.wait_leader()
    assert {n.id for n in side.store.view().all(Network)} == set(before)
    assert next(iter(side.store.view().all(Cluster))).ca_key_pem
    assert not (tmp_path / STORE).exists() and (tmp_path / "swarm" / "etcd.json").exists()
    await side.become_several()  # is what it is
    await until(lambda: _leads(side))
    await side.control.create_network(NetworkSpec(name="m"))
    await side.close()
    assert not (tmp_path / "swarm" / "etcd" / "pid").exists(), "an orderly end takes the member along"

    again: ManagerSide = await founded()
    await again.wait_leader(60)
    assert {n.spec.name for n in again.store.view().all(Network)} == {"ingress", "n", "m"}
    await until(lambda: _leads(again))


def _leads(side: ManagerSide) -> bool:
    try:
        _ = side.leading
    except NotLeading:
        return False
    node = side.store.view().get(Node, "n1")
    return node is not None and node.manager_status is not None and node.manager_status.leader


async def test_a_move_that_fails_or_is_cut_short_changes_nothing(
    founded: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side: ManagerSide = await founded()
    await side.control.create_network(NetworkSpec(name="n"))

    def full(self: object, config: object) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(etcd_home.EtcdHome, "save", full)
        with pytest.raises(Unavailable, match="the disk is full"):
            await side.become_several()
    await side.control.create_network(NetworkSpec(name="m"))  # it leads on, on SQLite
    assert not (tmp_path / "swarm" / "etcd").exists()

    # killed in the middle: a member runs, but nothing says that it counts
    with monkeypatch.context() as broken:
        broken.setattr(etcd_home.EtcdHome, "save", full)
        broken.setattr(etcd_home.EtcdHome, "sweep", _nothing)
        broken.setattr(EtcdProcess, "stop", _nothing)
        with pytest.raises(Unavailable):
            await side.become_several()
    left = int((tmp_path / "swarm" / "etcd" / "pid").read_text())
    await side.close()
    again: ManagerSide = await founded()
    assert {n.spec.name for n in again.store.view().all(Network)} == {"ingress", "n", "m"}
    assert not (tmp_path / "swarm" / "etcd").exists() and not Path(f"/proc/{left}/exe").exists()


async def _nothing(self: object) -> None: ...
