"""A manager that does not lead: what it asks the leader for, and what it answers when there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from overlace.api.server import ApiServer
from overlace.model.errors import NoLeader, NotLeading, NotReached

from .conftest import Api
from .doubles import FakeBackend

NO_LEADER = (
    "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are "
    "online. Make sure more than half of the managers are online."
)


class Follower:
    """ManagerHandle of a manager that follows the one behind `leader_socket`, over the same store."""

    node_id = "follower"

    def __init__(self, leader: FakeBackend, leader_socket: str) -> None:
        assert leader.manager is not None
        self.store = leader.manager.store
        self.resolver = leader.manager
        self.known: Any = leader.manager
        self.unreachable = 0
        self.asked: list[tuple[str, str]] = []
        self.waited_for: list[int] = []
        self._socket = leader_socket

    @property
    def control(self) -> Any:
        raise NotLeading

    logs = control

    def leader(self) -> Any:
        return self.known

    async def wait_leader(self) -> Any:
        if self.known is None:
            raise NoLeader
        return self.known

    def ask(
        self, leader: Any, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._ask(method, path, headers, body)

    @asynccontextmanager
    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        self.asked.append((method, path))
        if self.unreachable:
            self.unreachable -= 1
            raise NotReached("cannot reach the manager")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._socket)) as session,
            session.request(method, f"http://leader{path}", headers=dict(headers), data=body) as answer,
        ):
            yield answer

    async def caught_up(self, revision: int) -> None:
        self.waited_for.append(revision)


@pytest.fixture
async def follower(
    swarm: Api, backend: FakeBackend, server: str, tmp_path: Path
) -> AsyncIterator[tuple[Api, Follower]]:
    """`swarm` is the leader's API; this is another manager's, and what it knows of the leader."""
    manager = Follower(backend, server)
    other = FakeBackend()
    other.manager = manager  # type: ignore[assignment]
    other.state = backend.state
    api = ApiServer(other)
    path = tmp_path / "follower.sock"
    await api.start([f"unix://{path}"])
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield Api(session), manager
    await api.close()


SERVICE = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "img"}}}


async def test_changes_are_the_leaders_and_reads_are_its_own(follower: tuple[Api, Follower]) -> None:
    api, manager = follower
    status, made, headers = await api("POST", "/v1.51/services/create?x=a%26b", SERVICE)
    assert status == 201 and made["ID"] and headers["Api-Version"]
    assert manager.asked == [("POST", "/v1.51/services/create?x=a%26b")]
    status, found, _ = await api("GET", f"/v1.51/services/{made['ID']}")
    assert (status, found["Spec"]["Name"]) == (200, "web") and len(manager.asked) == 1
    # the leader's refusals arrive as they are
    status, answer, _ = await api("POST", "/services/create", SERVICE)
    assert status == 409 and answer["message"].endswith("service web already exists")
    status, answer, _ = await api(
        "POST", "/services/create", b"{bad", headers={"Content-Type": "application/json"}
    )
    assert status == 400 and "invalid JSON" in answer["message"] and len(manager.asked) == 2, "seen at once"
    status, body, _ = await api("DELETE", f"/services/{made['ID']}")
    assert status == 200 and not body


async def test_a_leader_that_has_just_died_is_waited_for(follower: tuple[Api, Follower]) -> None:
    api, manager = follower
    manager.unreachable = 2
    status, _, _ = await api("POST", "/services/create", SERVICE)
    assert status == 201 and len(manager.asked) == 3


async def test_without_a_leader_reads_answer_and_changes_get_dockers_words(
    follower: tuple[Api, Follower],
) -> None:
    api, manager = follower
    manager.known = None
    status, answer, _ = await api("POST", "/services/create", SERVICE)
    assert (status, answer["message"]) == (503, NO_LEADER)
    status, nodes, _ = await api("GET", "/nodes")
    assert status == 200
    shown = [n["ManagerStatus"] for n in nodes if "ManagerStatus" in n]
    assert [(s["Reachability"], s.get("Leader", False)) for s in shown] == [("unknown", False)]
    _, info, _ = await api("GET", "/info")
    assert info["Swarm"]["Error"] == NO_LEADER


async def test_what_was_forwarded_is_not_forwarded_again(follower: tuple[Api, Follower]) -> None:
    api, manager = follower
    status, answer, _ = await api(
        "POST", "/services/create", SERVICE, headers={"Overlace-Forwarded": "other"}
    )
    assert (status, answer["message"], manager.asked) == (503, NO_LEADER, [])


async def test_logs_stream_through(follower: tuple[Api, Follower], backend: FakeBackend) -> None:
    api, manager = follower
    _, made, _ = await api("POST", "/services/create", SERVICE)
    status, _, headers = await api("GET", f"/services/{made['ID']}/logs?stdout=1")
    assert status == 200 and headers["Content-Type"] == "application/vnd.docker.multiplexed-stream"
    assert manager.asked[-1][0] == "GET"
