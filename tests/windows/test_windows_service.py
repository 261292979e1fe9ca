"""The agent as a service of Windows' service manager: `overlace service` under a Windows Python, run by Wine's
services.exe and looked at with sc.

Not the real service manager: Wine's does not start a service again that failed.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlace.lab.layout import WINDOWS_BUILD
from overlace.lab.windows import wine
from overlace.lab.windows.prefix import ensure_prefix, remove_server_folder

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]
SERVER = Path("/usr/lib/wine/wineserver64")
ROOT = r"C:\ProgramData\overlace"


class Machine:
    """A Windows of its own, up until it is shut down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder, folder / "prefix"
        ensure_prefix(self.prefix, WINDOWS_BUILD)
        ours = {
            "PYTHONPATH": ";".join(wine.sources()),
            "PYTHONPYCACHEPREFIX": wine.windows_path(wine.home() / "bytecode"),
            "PYTHONUTF8": "1",
            "OVERLACE_HNS_PORT": "9",  # nobody's
        }
        self.environment = os.environ | wine.environment(self.prefix) | ours | {"PYTHONDONTWRITEBYTECODE": ""}
        # as an administrator sets variables for all services: they inherit nothing else
        registry = self.prefix / "system.reg"
        section = r"[System\\CurrentControlSet\\Control\\Session Manager\\Environment]"
        lines = "".join(f'"{k}"="{v}"\n'.replace("\\", "\\\\") for k, v in ours.items())
        text = registry.read_text(errors="surrogateescape")
        # as patient with a service that starts as Windows is; Wine's own default is 10 s
        patience = '[System\\\\CurrentControlSet\\\\Control]\n"ServicesPipeTimeout"=dword:00007530\n'
        registry.write_text(f"{text}\n{section}\n{lines}\n{patience}", errors="surrogateescape")
        subprocess.run([SERVER, "-p"], env=self.environment, check=True)

    def overlace(self, *words: str) -> tuple[int, str]:
        out = self.folder / "out"
        command = wine.python_command(["-m", "overlace.cli.main", *words], out)
        return self._run(command).returncode, out.read_text()

    def query(self) -> dict[str, str]:
        """What `sc query` says; empty without such a service."""
        said = self._run([*wine.program(Path("sc"), ["query", "overlace"])]).stdout
        return dict(re.findall(r"(\w+) +: (\w+)", said))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        out = self.folder / "said"
        with out.open("w") as file:
            done = subprocess.run(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=90
            )
        return subprocess.CompletedProcess(command, done.returncode, out.read_text(), "")

    def log(self) -> str:
        file = self.prefix / "drive_c" / "ProgramData" / "overlace" / "overlace.log"
        return file.read_text() if file.exists() else ""

    def shut_down(self) -> None:
        subprocess.run([SERVER, "-k"], env=self.environment)
        subprocess.run([SERVER, "-w"], env=self.environment)
        remove_server_folder(self.prefix)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("windows"))
    yield made
    made.shut_down()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_ping", timeout=3) as answer:
            return answer.read() == b"OK"
    except (OSError, urllib.error.URLError):
        return False


def _until(what: str, ready: object, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_the_agent_is_installed_started_stopped_and_removed(machine: Machine, port: int) -> None:
    options = ["-H", f"tcp://127.0.0.1:{port}", "--underlay-address", "127.0.0.1"]
    options += ["--data-root", ROOT, "--exec-root", rf"{ROOT}\run"]
    code, said = machine.overlace("service", "install", "--lable", *options)
    assert code == 2 and not machine.query(), said
    code, said = machine.overlace("service", "start")
    assert code == 1 and "overlace service install" in said
    assert machine.overlace("service", "install", *options)[0] == 0
    code, said = machine.overlace("service", "install", *options)
    assert code == 1 and "exists already" in said
    assert machine.query()["STATE"] == "1"
    code, said = machine.overlace("service", "start")
    assert code == 0, said
    assert machine.query()["STATE"] == "4"
    _until("the API", lambda: _serves(port))
    code, said = machine.overlace("service", "stop")
    assert code == 0, said
    shown = machine.query()
    assert (shown["STATE"], shown["WIN32_EXIT_CODE"]) == ("1", "0")
    assert "stopped; containers go on" in machine.log(), "it was asked, not ended"
    assert machine.overlace("service", "remove")[0] == 0 and not machine.query()


def test_the_service_manager_learns_of_a_failure(machine: Machine, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        options = ["-H", f"tcp://127.0.0.1:{port}", "--underlay-address", "127.0.0.1"]
        options += ["--data-root", ROOT, "--exec-root", rf"{ROOT}\run"]
        assert machine.overlace("service", "install", *options)[0] == 0
        machine.overlace("service", "start")
        _until("its end", lambda: machine.query()["STATE"] == "1")
        assert machine.query()["WIN32_EXIT_CODE"] == "1066", (
            "a failure of its own, after which it is started again"
        )
        assert str(port) in machine.log()
    assert machine.overlace("service", "remove")[0] == 0


def test_what_the_service_manager_runs_is_not_for_people(machine: Machine) -> None:
    code, _ = machine.overlace("service", "run", "--data-root", ROOT, "--exec-root", rf"{ROOT}\run")
    assert code == 1 and "use `overlace service start`" in machine.log()
