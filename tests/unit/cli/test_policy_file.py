"""`overlace policy`: the file, what it changes, and what it refuses before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from overlace.cli import policy as module
from overlace.cli.engine import EngineError
from overlace.cli.main import cli
from overlace.cli.policy import plan_changes, read_file, read_networks, show_policies
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError

FROM, TO = "overlace.policy.allow-from", "overlace.policy.allow-to"
FILE = """
services:
  db:
    allow-from: [web:tcp/5432, backup]
    allow-to: none
  web:
    session-affinity: client-ip:600
    egress-limit: 10mbit
    allow-to: null
"""
STACK = {"com.docker.stack.namespace": "shop"}


def test_a_file_becomes_labels() -> None:
    wanted = read_file(FILE)
    assert wanted["db"] == {FROM: "web:tcp/5432, backup", TO: "none"}
    assert wanted["web"] == {
        "overlace.session-affinity": "client-ip:600",
        "overlace.egress-limit": "10mbit",
        TO: None,
    }


def test_only_what_differs_changes() -> None:
    services = {"shop_db": {**STACK, FROM: "x", "mine": "1"}, "web": {TO: "none"}, "other": {FROM: "none"}}
    db, web = plan_changes(read_file(FILE), services, prune=False)
    assert db.service == "shop_db" and db.labels == {
        **STACK,
        FROM: "web:tcp/5432, backup",
        TO: "none",
        "mine": "1",
    }
    assert web.removed == (TO,) and len(web.added) == 2
    again = {c.service: c.labels for c in (db, web)} | {"other": services["other"]}
    assert plan_changes(read_file(FILE), again, prune=False) == []
    (pruned,) = plan_changes(read_file(FILE), again, prune=True)
    assert (pruned.service, pruned.labels) == ("other", {})


def test_what_is_shown_can_be_applied() -> None:
    services = {"db": {FROM: "web:tcp/80, 10.0.0.0/8", TO: "none"}, "web": {"mine": "1"}}
    shown = yaml.safe_dump(show_policies(services))
    assert plan_changes(read_file(shown), services, prune=True) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- db", "it must begin with services: or networks:"),
        ("services: {db: {allow-form: web}}", "services.db.allow-form is not known; allow-from, allow-to"),
        (
            "services: {db: {allow-from: 7}}",
            "services.db.allow-from: 7 is neither a text or a list of texts nor null",
        ),
        (
            "services: {db: {allow-from: [web:80]}}",
            "services.db.allow-from: label overlace.policy.allow-from: item 1",
        ),
        ("services: {db: {session-affinity: [x]}}", "is neither a text nor null"),
        ("services: {db: {egress-limit: 10}}", "is neither a text nor null"),
        ("services: {db: {egress-limit: fast}}", "'fast' is no rate: write 8kbit to 100gbit"),
        (
            "networks: {a: {egress-limit: 1mbit}}",
            "networks.a.egress-limit is not known; allow-from, allow-to",
        ),
        ("networks: {a: {allow-from: [web:80]}}", "networks.a.allow-from: label overlace.policy.allow-from"),
        ("networks: [a]", "networks: must hold one member for each"),
        ("services: {}\nnets: {}", "nets: is not known"),
        ("services: [", "the file: while parsing"),
    ],
)
def test_refusals_name_the_place(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read_file(text), read_networks(text)
    assert words in refused.value.message


def test_names_must_mean_one_service() -> None:
    wanted = read_file("services: {db: {allow-from: none}}")
    with pytest.raises(NotFound, match="service db not found"):
        plan_changes(wanted, {"web": {}}, prune=False)
    other = {"com.docker.stack.namespace": "test"}
    with pytest.raises(InvalidArgument, match="write shop_db or test_db"):
        plan_changes(wanted, {"shop_db": STACK, "test_db": other}, prune=False)
    twice = read_file("services: {db: {allow-from: none}, shop_db: {allow-from: none}}")
    with pytest.raises(InvalidArgument, match="named twice"):
        plan_changes(twice, {"shop_db": STACK}, prune=False)


class FakeEngine:
    """Two services; the first update meets somebody else's change."""

    def __init__(self) -> None:
        self.labels: dict[str, dict[str, str]] = {"db": {"mine": "1"}, "web": {}}
        self.networks: dict[str, dict[str, str]] = {"back": {}}
        self.version = 7
        self.raced = False

    @classmethod
    def of_user(cls, host: str) -> FakeEngine:
        return ENGINES[host]

    def _service(self, name: str) -> dict[str, Any]:
        spec = {"Name": name, "Labels": self.labels[name], "TaskTemplate": {"ForceUpdate": 3}}
        return {"ID": f"id-{name}", "Version": {"Index": self.version}, "Spec": spec}

    def call(self, method: str, url: str, body: Any = None) -> Any:
        if url == "/services":
            return [self._service(name) for name in self.labels]
        if url == "/networks":
            local = {"Name": "bridge", "Scope": "local", "Driver": "bridge", "Labels": None}
            return [
                local,
                *(
                    {"Name": name, "Scope": "swarm", "Driver": "overlay", "Labels": labels}
                    for name, labels in self.networks.items()
                ),
            ]
        if url.startswith("/overlace/v1/networks/"):
            self.networks[url.split("/")[4]] = body["Labels"]
            return {}
        if method == "GET":
            return self._service(url.rpartition("/")[2])
        name, _, version = url.removeprefix("/services/id-").partition("/update?version=")
        assert body["TaskTemplate"] == {"ForceUpdate": 3}, "nothing else changes"
        if not self.raced:
            self.raced = True
            self.version += 1
            self.labels[name] = {**self.labels[name], "theirs": "2"}
        if int(version) != self.version:
            raise EngineError("", 500, "rpc error: code = Unknown desc = update out of sequence")
        self.version += 1
        self.labels[name] = body["Labels"]
        return {}


ENGINES: dict[str, FakeEngine] = {}


def test_apply_and_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    engine = ENGINES["unix:///x"] = FakeEngine()
    monkeypatch.setattr(module, "Engine", FakeEngine)
    path = tmp_path / "policy.yml"
    path.write_text(FILE)
    run = CliRunner()
    arguments = ["policy", "apply", "-f", str(path), "-H", "unix:///x"]
    dry = run.invoke(cli, [*arguments, "--dry-run"])
    assert dry.exit_code == 0 and "db: +overlace.policy.allow-to=none" in dry.output
    assert engine.labels == {"db": {"mine": "1"}, "web": {}}
    done = run.invoke(cli, arguments)
    assert done.output == dry.output
    assert engine.labels["db"] == {"mine": "1", "theirs": "2", FROM: "web:tcp/5432, backup", TO: "none"}
    assert run.invoke(cli, arguments).output == "nothing to change\n"
    shown = run.invoke(cli, ["policy", "show", "-H", "unix:///x"])
    assert yaml.safe_load(shown.output)["services"]["db"] == {
        "allow-from": ["web:tcp/5432", "backup"],
        "allow-to": "none",
    }
    path.write_text("networks: {back: {allow-from: none}}")
    changed = run.invoke(cli, arguments)
    assert changed.output == f"network back: +{FROM}=none\n"
    assert engine.networks == {"back": {FROM: "none"}}
    assert run.invoke(cli, arguments).output == "nothing to change\n"
    shown = run.invoke(cli, ["policy", "show", "-H", "unix:///x"])
    assert yaml.safe_load(shown.output)["networks"] == {"back": {"allow-from": "none"}}
    path.write_text("services: {}")
    assert "network" not in run.invoke(cli, [*arguments, "--prune"]).output, "it says nothing of networks"
    path.write_text("networks: {back: {allow-from: null}}")
    assert run.invoke(cli, arguments).output == f"network back: -{FROM}\n"
    missing = run.invoke(cli, ["policy", "apply", "-f", str(tmp_path / "no.yml"), "-H", "unix:///x"])
    assert isinstance(missing.exception, OverlaceError) and "No such file" in missing.exception.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b"[" * 5000, "nested too deeply"),
        (b"services: " + b"9" * 5000, "Exceeds the limit"),
        (b"services: 2026-02-31", "day is out of range"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "policy.yml").write_bytes(data)
    run = CliRunner().invoke(cli, ["policy", "apply", "-f", str(tmp_path / "policy.yml")])
    assert isinstance(run.exception, InvalidArgument) and words in run.exception.message
