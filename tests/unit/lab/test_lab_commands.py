"""`overlace lab`: what may be typed, and what is answered to a mistake."""

from __future__ import annotations

import os
from typing import Any

import pytest
from click.testing import CliRunner

from overlace.cli.main import cli, main
from overlace.lab import commands
from overlace.lab.layout import LabPlan, Paths, plan_lab
from overlace.model.errors import Conflict


class FakeLab:
    def __init__(self, name: str) -> None:
        self.name = name
        self.plan: LabPlan = plan_lab(name, 1, linux=1, windows=0, managers=1, paths=Paths())

    def command(self, host: str, argv: tuple[str, ...]) -> list[str]:
        return ["enter", self.name, host, *argv]

    def environment(self, host: str) -> dict[str, str]:
        return {"HOST": host}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(commands.Lab, "open", FakeLab)
    monkeypatch.setattr(os, "execvpe", lambda *words: calls.append(words))
    return calls


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["linux-1", "--", "ip", "-br", "a"], ["enter", "lab", "linux-1", "ip", "-br", "a"]),
        (["mine", "linux-1", "--", "sh", "-c", "exit 3"], ["enter", "mine", "linux-1", "sh", "-c", "exit 3"]),
        (["linux-1", "--", "env", "--", "--help"], ["enter", "lab", "linux-1", "env", "--", "--help"]),
    ],
)
def test_exec_gives_the_command_every_word_after_the_dashes(
    ran: list[Any], typed: list[str], words: list[str]
) -> None:
    result = CliRunner().invoke(cli, ["lab", "exec", *typed])
    assert result.exit_code == 0, result.output
    assert ran[0][1] == words


@pytest.mark.parametrize("typed", [["linux-1"], ["linux-1", "--"], ["--", "ls"], ["a", "b", "c", "--", "ls"]])
def test_exec_without_host_or_command_says_how(
    ran: list[Any], typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["lab", "exec", *typed])
    assert stop.value.code == 1
    assert "overlace lab exec [NAME] HOST -- COMMAND" in capsys.readouterr().err
    assert not ran


def test_a_refusal_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Conflict("lab x exists already")

    monkeypatch.setattr(commands.Lab, "up", refuse)
    with pytest.raises(SystemExit) as stop:
        main(["lab", "up", "x", "--json"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err) == (1, "", "overlace: lab x exists already\n")


def test_a_lab_where_a_host_belongs_is_told_apart(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands.Lab, "names", lambda: ["mine"])
    with pytest.raises(SystemExit) as stop:
        main(["lab", "kill", "mine"])
    assert stop.value.code == 1
    assert "mine is a lab: say which of its hosts" in capsys.readouterr().err
