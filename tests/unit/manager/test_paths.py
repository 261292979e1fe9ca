"""Health of a network: the matrix, and what is said of a pair that is broken."""

from __future__ import annotations

import msgspec
import pytest
from paths_kit import INGRESS, A, B, host, made, path

from overlace.cli.network import show
from overlace.manager.netviews import node_entry
from overlace.manager.paths import PathBook, explain_health, explain_paths_of
from overlace.model.objects import NodeStatus
from overlace.model.paths import Notice
from overlace.model.states import NodeState
from overlace.wire.messages import Paths


async def test_the_matrix_has_every_pair_and_what_was_not_said_is_unknown() -> None:
    store = await made()
    health = explain_health(store.view(), INGRESS, {(A.id, B.id): path(B)})
    assert [(p.from_, p.to, p.state, p.rtt_us) for p in health.paths] == [
        ("alpha", "beta", "ok", 210),
        ("beta", "alpha", "unknown", 0),
    ]
    assert health.container_mtu == 1450 and health.problems == ()


async def test_a_broken_pair_is_named_with_both_hosts_and_the_port() -> None:
    store = await made()
    paths = {(A.id, B.id): path(B, state="down"), (B.id, A.id): path(A, state="down")}
    first = explain_health(store.view(), INGRESS, paths).problems[0]
    assert (first.from_, first.to) == ("alpha", "beta")
    assert "UDP 4789" in first.reason and "alpha" in first.reason and "beta" in first.reason
    assert "firewall" in first.remedy


async def test_a_missing_route_is_named_before_any_firewall() -> None:
    view = (await made()).view()
    mine = {(A.id, B.id): path(B, state="down", route="no route")}
    (problem,) = explain_health(view, INGRESS, mine).problems
    assert problem.reason == "alpha (172.28.1.1) has no route to beta (172.28.1.2)"
    assert "ip route get 172.28.1.2" in problem.remedy and "firewall" not in problem.remedy
    theirs = {(A.id, B.id): path(B, state="down"), (B.id, A.id): path(A, state="down", route="no route")}
    for problem in explain_health(view, INGRESS, theirs).problems:
        assert problem.reason == "beta (172.28.1.2) has no route to alpha (172.28.1.1)"


async def test_a_host_that_is_down_is_not_a_firewall() -> None:
    store = await made(A, host("beta", 2, status=NodeStatus(NodeState.DOWN, "heartbeat failure")))
    problem = explain_health(store.view(), INGRESS, {(A.id, B.id): path(B, state="down")}).problems[0]
    assert problem.reason == "node beta is down: heartbeat failure"


async def test_a_host_whose_switch_answers_no_probes_is_not_measured_and_not_broken() -> None:
    assert B.description is not None
    windows = msgspec.structs.replace(B, description=msgspec.structs.replace(B.description, os="windows"))
    entry, emulated = node_entry(windows), msgspec.structs.replace(windows.description, emulated=True)
    assert entry is not None and entry.answers_probes is False and not entry.measurable
    assert node_entry(msgspec.structs.replace(B, description=emulated)).measurable  # type: ignore[union-attr]
    store = await made(A, windows)
    back = path(A, mtu=1400)
    for said in ({}, {(A.id, B.id): path(B, state="down")}):  # the second: of an agent that asks all the same
        health = explain_health(store.view(), INGRESS, {**said, (B.id, A.id): back})
        assert [(p.from_, p.state, p.mtu, bool(p.why)) for p in health.paths] == [
            ("alpha", "unmeasured", 0, True),
            ("beta", "ok", 1400, False),
        ]
        assert health.container_mtu == 1350 and [p.from_ for p in health.problems] == ["beta"]
    book = PathBook(store.view)
    heard: list[Notice] = []
    book.watch(heard.append)
    book.put(A.id, Paths((path(B, state="down"),)))
    assert not heard and explain_paths_of(store.view(), ["beta"], book.all()) == ""


async def test_a_narrow_path_gives_containers_less_and_says_why() -> None:
    store = await made()
    health = explain_health(store.view(), INGRESS, {(A.id, B.id): path(B, mtu=1400)})
    assert health.container_mtu == 1350
    assert "1401 bytes" in health.problems[0].reason and "1350" in health.problems[0].remedy


async def test_changes_are_told_once_and_a_silent_node_is_forgotten() -> None:
    store = await made()
    book = PathBook(store.view)
    heard: list[Notice] = []
    stop = book.watch(heard.append)
    for state in (path(B), path(B, state="down"), path(B, state="down", loss=100), path(B)):
        book.put(A.id, Paths((state,)))
    assert [n.action for n in heard] == ["path_broken", "path_mended"]
    assert heard[0].attributes["from"] == "alpha" and heard[0].attributes["to"] == "beta"
    assert "remedy" in heard[0].attributes
    book.put(A.id, Paths((path(B, mtu=1400),)))
    assert heard[-1].action == "path_mtu" and heard[-1].attributes["mtu.new"] == "1400"
    stop()
    book.silent(A.id)
    assert not book.all()


async def test_a_complete_report_replaces_what_was_said_before() -> None:
    store = await made(A, B, host("gamma", 3))
    book = PathBook(store.view)
    book.put(A.id, Paths((path(B), path(host("gamma", 3)))))
    book.put(A.id, Paths((path(B),), complete=True))
    assert list(book.all()) == [(A.id, B.id)]


async def test_why_hears_of_a_broken_way_once_for_both_directions() -> None:
    store = await made()
    down = {(A.id, B.id): path(B, state="down"), (B.id, A.id): path(A, state="down")}
    said = explain_paths_of(store.view(), ["beta"], down)
    assert said.count("UDP 4789 between") == 1 and "alpha" in said
    assert explain_paths_of(store.view(), ["gamma"], down) == ""
    assert explain_paths_of(store.view(), ["beta"], {(A.id, B.id): path(B)}) == ""


async def test_the_table_says_why_a_way_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert B.description is not None
    windows = msgspec.structs.replace(B, description=msgspec.structs.replace(B.description, os="windows"))
    store = await made(A, windows)
    health = explain_health(store.view(), INGRESS, {(B.id, A.id): path(A)})
    show(msgspec.to_builtins(health))
    shown = capsys.readouterr().out
    assert "not measured" in shown and "ok 0% 0.21ms 1500" in shown
    assert "to beta: not measured: the switch of a Windows host answers no probes" in shown
