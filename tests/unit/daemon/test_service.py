"""What `overlace service` gives systemd and the service manager of Windows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from overlace.daemon import systemd
from overlace.daemon.log_file import LogFile
from overlace.daemon.scm import error_of
from overlace.daemon.service import environment, service, service_command
from overlace.daemon.systemd import install, quoted, remove, unit_text
from overlace.model.errors import Conflict, Internal, NotFound, PermissionDenied

WORDS = [
    "/opt/my python",
    "-m",
    "overlace.cli.main",
    "daemon",
    "--label",
    'a=100% $HOME "x" \\n',
    "--dns",
    "10.0.0.1",
]


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_a_stop_or_a_crash_of_the_daemon_ends_nothing_but_the_daemon() -> None:
    said = settings(unit_text(WORDS, {}))
    assert (said["KillMode"], said["Delegate"], said["Restart"]) == ("process", "yes", "always")
    assert said["StartLimitIntervalSec"] == "0", "systemd never gives up on it"
    assert "RuntimeDirectory" not in said, "systemd would remove what containers need when the daemon stops"


def test_words_come_back_as_they_were() -> None:
    assert quoted("plain-word:1") == "plain-word:1"
    assert quoted('a "b" $c 50%') == '"a \\"b\\" $$c 50%%"'
    assert quoted("") == '""'
    text = unit_text(["x"], {"PYTHONPATH": "/a b/$c%d"})
    assert 'Environment="PYTHONPATH=/a b/$c%%d"\n' in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "overlace.service"
    unit.write_text(unit_text([sys.executable, *WORDS[1:]], {"PYTHONPATH": "/a b/$c%d"}))
    said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that notes what it is asked."""
    record = tmp_path / "asked"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {record}\n[ "$1" != fail ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd, "RUNNING", tmp_path)
    return record


def test_installed_and_removed(tmp_path: Path, systemctl: Path) -> None:
    unit = tmp_path / "overlace.service"
    install(unit_text(["one"], {}), unit)
    install(unit_text(["two"], {}), unit)
    assert settings(unit.read_text())["ExecStart"] == "two"
    remove(unit)
    assert not unit.exists()
    asked = systemctl.read_text().splitlines()
    assert asked[-3:] == ["stop overlace.service", "disable overlace.service", "daemon-reload"]
    with pytest.raises(NotFound, match="not installed"):
        remove(unit)


def test_somebody_elses_unit_stays(tmp_path: Path, systemctl: Path) -> None:
    unit = tmp_path / "overlace.service"
    unit.write_text("[Unit]\n")
    for change in (lambda: install(unit_text(["one"], {}), unit), lambda: remove(unit)):
        with pytest.raises(Conflict, match="not written by overlace"):
            change()
    assert unit.read_text() == "[Unit]\n" and not systemctl.exists()


def test_wrong_options_are_refused_when_installed_not_at_the_next_boot() -> None:
    unknown = CliRunner().invoke(service, ["install", "--print", "--lable", "a=b"])
    assert unknown.exit_code == 2 and "--lable" in unknown.output
    wrong = CliRunner().invoke(service, ["install", "--print", "--label", "a"])
    assert wrong.exception is not None and "use KEY=VALUE" in str(wrong.exception)
    right = CliRunner().invoke(service, ["install", "--print", "--label", "a=b"])
    command = settings(right.output)["ExecStart"].split()
    assert command[1:] == ["-m", "overlace.cli.main", "daemon", "--label", "a=b"]


def test_windows_runs_the_verb_that_speaks_to_its_service_manager() -> None:
    assert service_command(["--log-level", "debug"], windows=True)[1:] == [
        *("-m", "overlace.cli.main", "service", "run", "--log-level", "debug")
    ]


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (5, PermissionDenied, "elevated prompt"),
        (1060, NotFound, "overlace service install"),
        (1073, Conflict, "overlace service remove"),
        (1072, Conflict, "being removed"),
        (87, Internal, "CreateService: Windows error 87"),
    ],
)
def test_windows_errors_say_what_to_do(code: int, kind: type[Exception], words: str) -> None:
    error = error_of("CreateService", code)
    assert isinstance(error, kind) and words in error.message


def test_a_log_file_begins_anew_before_it_grows_large(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "overlace.log"
    with LogFile(path, limit=100) as log:
        for n in range(100):
            print(f"line {n} \ud800", file=log)
    now, before = path.read_text(), Path(f"{path}.1").read_text()
    assert now.endswith("line 99 \\ud800\n") and len(now) < 150 and len(before) < 150
    with LogFile(path, limit=100) as log:
        log.write("after a restart\n")
    assert "after a restart" in path.read_text()


def test_a_path_of_the_shell_is_one_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service starts in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"src{os.pathsep}/opt/more{os.pathsep}")
    assert environment()["PYTHONPATH"].split(os.pathsep) == [
        str(tmp_path / "src"),
        "/opt/more",
        str(tmp_path),
    ]
    monkeypatch.delenv("PYTHONPATH")
    assert environment() == {}
