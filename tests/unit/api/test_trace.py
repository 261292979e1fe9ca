"""`overlace trace` against a manager's socket, as people see it."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner, Result

from overlace.cli.main import cli
from overlace.cli.trace import show

from .conftest import Api
from .doubles import NODE, FakeBackend


async def overlace(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, ["trace", *words])


async def test_the_way_and_its_end(
    swarm: Api, backend: FakeBackend, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{server}")
    said = await overlace("client", "one", "--port", "22", "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["Outcome"] == "reaches the programs of one itself"
    said = await overlace("client", "10.9.9.9")
    assert said.exit_code == 1 and "broken" in said.stdout and "what to do: publish a port" in said.stdout
    assert (await swarm("GET", f"/overlace/v1/trace?from=client&to={NODE}"))[0] == 200


async def test_refusals(api: Api, swarm: Api) -> None:
    status, body, _ = await api("GET", "/overlace/v1/trace?from=web")
    assert status == 400 and body["message"].startswith("query parameter to is missing")
    status, body, _ = await api("GET", "/overlace/v1/trace?from=client&to=one&port=x")
    assert status == 400 and "port='x'" in body["message"]
    assert (await api("GET", "/overlace/v1/trace?from=client&to=nobody"))[0] == 404


async def test_only_a_manager_knows(api: Api) -> None:
    status, body, _ = await api("GET", "/overlace/v1/trace?from=web&to=db")
    assert status == 503 and "not a swarm manager" in body["message"]


def test_a_broken_hop_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    hop = {"Kind": "rule", "What": "FW IN", "Effect": "allow", "Packet": "a > b", "Ok": True}
    show(
        {
            "Source": "web", "Target": "db", "Question": "a > b", "Outcome": "broken at two: no",
            "Hops": [{**hop, "Where": "one"}, {**hop, "Where": "two", "Ok": False, "Packet": "a > c"}],
            "Broken": {"Where": "two", "Reason": "no", "Remedy": "do this"},
            "Members": [{"Task": "db.1", "Node": "two", "Address": "c", "Ok": False, "Reason": "no"}],
            "Notes": ["once", "once"],
        }
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "  2 X two  FW IN: allow\n           now a > c" in shown and "    X c  db.1 on two: no" in shown
    assert shown.endswith("broken at two: no\nwhat to do: do this\nnote: once\n")
