"""What the conformance tests stand on: docker CLIs, a swarm to ask, places to send packets from, bounded waits.

Owns running programs and waiting for what they bring about. Must not assert anything about the product itself.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from overlace.lab import Lab, engine

T = TypeVar("T")
Json = dict[str, Any]


def eventually(probe: Callable[[], T], what: str, timeout: float = 20, step: float = 0.05) -> T:
    """Ask until `probe` gives something true, and return that.

    An AssertionError of the probe means "not yet"; the last one is told when `timeout` seconds have passed.
    """
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        try:
            found = probe()
        except AssertionError as error:
            last = f": {error}"
        else:
            if found:
                return found
            last = f": last seen {found!r}"
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s{last}")
        time.sleep(step)


def clis() -> dict[str, str]:
    """Every docker CLI of this machine, by version: those on PATH, and the one `make setup` may have fetched."""
    folders = [*os.environ.get("PATH", os.defpath).split(":"), os.path.dirname(sys.executable)]
    found: dict[str, str] = {}
    for folder in folders:
        program = shutil.which("docker", path=folder)
        if program is not None:
            words = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20).stdout
            match = re.search(r"version (\d+\.\d+\.\d+)", words)
            if match is not None:
                found.setdefault(match[1], program)
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


class Refusal(NamedTuple):
    """A command that ended with an error: what it said, and its status."""

    words: str
    code: int


class Docker:
    """One docker CLI, as a person uses it. `docker("service", "ls")` gives what it printed.

    `host` names the lab's host whose daemon is asked (the manager when left out).
    """

    def __init__(self, program: str, lab: Lab, config: str) -> None:
        self.program = program
        self.lab = lab
        self._config = config

    def environment(self, host: str | None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        address = self.lab.host(host).docker_host if host else self.lab.manager.docker_host
        assert address is not None, f"{host} runs no daemon"
        return kept | {"DOCKER_HOST": address, "DOCKER_CONFIG": self._config}

    def run(
        self, *argv: str, host: str | None = None, stdin: str | None = None, timeout: float = 45
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *argv],
            env=self.environment(host),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def __call__(
        self, *argv: str, host: str | None = None, stdin: str | None = None, timeout: float = 45
    ) -> str:
        done = self.run(*argv, host=host, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"docker {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def refused(
        self, *argv: str, host: str | None = None, stdin: str | None = None, timeout: float = 45
    ) -> str:
        """What it says when it fails. It must fail."""
        done = self.run(*argv, host=host, stdin=stdin, timeout=timeout)
        assert done.returncode != 0, f"docker {' '.join(argv)} did not fail: {done.stdout}{done.stderr}"
        return done.stderr.strip()

    def json(self, *argv: str, host: str | None = None) -> Any:
        return json.loads(self(*argv, host=host))

    def lines(self, *argv: str, host: str | None = None) -> list[str]:
        return self(*argv, host=host).splitlines()

    def one(self, *argv: str, host: str | None = None) -> Any:
        """The only element of what `inspect` prints."""
        found = self.json(*argv, host=host)
        assert len(found) == 1, found
        return found[0]

    def said(self, *argv: str, host: str | None = None, stdin: str | None = None) -> str:
        """Output and warnings together, of a command that succeeds."""
        done = self.run(*argv, host=host, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def following(self, *argv: str, host: str | None = None) -> Iterator[Follower]:
        """A command that goes on: its lines as they come. It is ended at the end of the block."""
        process = subprocess.Popen(
            [self.program, *argv],
            env=self.environment(host),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        follower = Follower(process)
        try:
            yield follower
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            follower.close()


class Follower:
    """The lines of a running command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def wait_for(self, wanted: Callable[[str], Any], what: str, timeout: float = 15) -> str:
        """The first line not looked at yet that `wanted` takes."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"{what}: not within {timeout:g} s; seen: {self.seen}") from None
            self.seen.append(line)
            if wanted(line):
                return line

    def ends(self, timeout: float = 15) -> int:
        return self._process.wait(timeout)

    def close(self) -> None:
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Answer(NamedTuple):
    status: int
    message: str


class Swarm:
    """A lab's swarm, asked through the Engine API: the waits the tests share, and what no CLI shows."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # -- the API ----------------------------------------------------------------------------------------------

    def call(self, method: str, url: str, body: object = None, *, host: str | None = None) -> Any:
        where = self.lab.host(host) if host else self.lab.manager
        return engine.call(where.socket, method, url, body)

    def get(self, url: str, *, host: str | None = None, **filters: Sequence[str]) -> Any:
        if filters:
            text = json.dumps({key.replace("_", "-"): list(values) for key, values in filters.items()})
            url += f"?filters={urllib.parse.quote(text)}"
        return self.call("GET", url, host=host)

    def refusal(self, method: str, url: str, body: object = None, *, host: str | None = None) -> Answer:
        """Status and message of a call that must be refused."""
        try:
            answer = self.call(method, url, body, host=host)
        except engine.EngineError as error:
            return Answer(error.status, error.message.partition(f": {error.status} ")[2])
        raise AssertionError(f"{method} {url} was not refused: {answer!r}")

    # -- nodes ------------------------------------------------------------------------------------------------

    def nodes(self) -> dict[str, Json]:
        return {node["Description"]["Hostname"]: node for node in self.get("/nodes")}

    def node_id(self, host: str) -> str:
        return str(self.nodes()[host]["ID"])

    def host_of(self, task: Json) -> str:
        """Name of the host a task is placed on."""
        return next(name for name, node in self.nodes().items() if node["ID"] == task["NodeID"])

    # -- tasks ------------------------------------------------------------------------------------------------

    def tasks(self, service: str, *, wanted: bool = True) -> list[Json]:
        """Tasks of a service, newest first; only those that should run unless `wanted` is False."""
        filters: dict[str, Sequence[str]] = {"service": [service]}
        if wanted:
            filters["desired_state"] = ["running", "ready"]
        return sorted(self.get("/tasks", **filters), key=lambda t: t["CreatedAt"], reverse=True)

    def running(self, service: str, count: int = 1, timeout: float = 25) -> list[Json]:
        """Wait until exactly `count` tasks should run and do, and return them."""

        def probe() -> tuple[list[Json]]:
            there = self.tasks(service)
            assert len(there) == count and all(t["Status"]["State"] == "running" for t in there), _told(there)
            return (there,)

        return eventually(probe, f"{count} running of {service}", timeout)[0]

    def pending(self, service: str, words: str, timeout: float = 15) -> Json:
        """Wait for a task that no node takes and that says so with `words`."""

        def probe() -> Json | None:
            there = self.tasks(service, wanted=False)
            return next((t for t in there if words in t["Status"].get("Err", "")), None) or _fail(there)

        return eventually(probe, f"a task of {service} says {words!r}", timeout)

    def where(self, service: str, count: int = 1) -> dict[str, list[Json]]:
        """Wait for `count` running tasks; give them by host."""
        found: dict[str, list[Json]] = {}
        for task in self.running(service, count):
            found.setdefault(self.host_of(task), []).append(task)
        return found

    def updated(self, service: str, state: str = "completed", timeout: float = 30) -> Json:
        """Wait until the service's update has come to `state`."""

        def probe() -> Json | None:
            found = self.get(f"/services/{service}")
            status = found.get("UpdateStatus", {})
            assert status.get("State") == state, f"{status}; {_told(self.tasks(service))}"
            return found

        return eventually(probe, f"update of {service} is {state}", timeout)

    # -- containers -------------------------------------------------------------------------------------------

    def containers(self, host: str, service: str = "") -> list[Json]:
        filters = {"label": [f"com.docker.swarm.service.name={service}"]} if service else {}
        return list(self.get("/containers/json", host=host, **filters))

    def inspect(self, task: Json) -> Json:
        """Its container, as its own host shows it."""
        id = task["Status"]["ContainerStatus"]["ContainerID"]
        return dict(self.get(f"/containers/{id}/json", host=self.host_of(task)))

    def inside(self, task: Json, command: str, timeout: float = 20, check: bool = True) -> str:
        """What a shell command prints in a task's container."""
        pid = self.inspect(task)["State"]["Pid"]
        done = subprocess.run(
            ["nsenter", "-t", str(pid), "-m", "-n", "-p", "-u", "-i", "/bin/busybox", "sh", "-c", command],
            env={"PATH": "/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return (done.stdout if check else done.stdout + done.stderr).strip()

    def resolve(self, task: Json, name: str) -> set[str]:
        """The IPv4 addresses `name` has in a task's container; empty when there is no such name."""
        said = self.inside(task, f"nslookup -type=a {name} 127.0.0.11 2>/dev/null", check=False)
        answer = said.partition("Name:")[2]
        return set(re.findall(r"Address[^:]*:\s*(\d+\.\d+\.\d+\.\d+)", answer))

    def fetch(self, task: Json, url: str, seconds: int = 3) -> str:
        """The body of `url`, got from a task's container; "" when nobody answers."""
        # timeout(1), not -T: Debian's static busybox wget crashes with it
        return self.inside(task, f"timeout {seconds} wget -qO- {url} 2>/dev/null", check=False)

    # -- the world outside ------------------------------------------------------------------------------------

    def curl(self, url: str, *more: str, host: str = "client", seconds: float = 3) -> str:
        """The body of `url`, got on a host of the lab; "" when nobody answers."""
        done = self.lab.exec(
            host, "curl", "-sS", "--max-time", str(seconds), *more, url, check=False, timeout=30
        )
        return done.stdout if done.returncode == 0 else ""

    def answers(self, url: str, *, host: str = "client", timeout: float = 10) -> Json:
        """Wait until the app answers at `url`; give what it says of itself."""
        return json.loads(eventually(lambda: self.curl(url, host=host, seconds=1), f"{url} answers", timeout))


def _told(tasks: Iterable[Json]) -> str:
    return "; ".join(
        f"{t['ID'][:6]} slot {t.get('Slot')} {t['Status']['State']} (desired {t['DesiredState']})"
        f" {t['Status'].get('Err', '')}"
        for t in tasks
    )


def _fail(tasks: Iterable[Json]) -> None:
    raise AssertionError(_told(tasks))


@functools.lru_cache
def address_of(inspected: str) -> str:
    """`10.0.1.5/24` -> `10.0.1.5`."""
    return inspected.partition("/")[0]


def overlay_address(task: Json, network: str) -> str:
    """A task's address on a network."""
    for attachment in task["NetworksAttachments"]:
        if attachment["Network"]["Spec"]["Name"] == network:
            return address_of(attachment["Addresses"][0])
    raise AssertionError(f"task {task['ID']} is not on {network}")


def vip(service: Json, network_id: str) -> str:
    """A service's virtual address on a network."""
    for one in service["Endpoint"]["VirtualIPs"]:
        if one["NetworkID"] == network_id:
            return address_of(one["Addr"])
    raise AssertionError(f"{service['Spec']['Name']} has no VIP on {network_id}")


def overlace(docker: Docker, *argv: str, code: int = 0) -> str:
    """What the command says, which must end with `code`."""
    environment = docker.environment(None) | {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
    command = [sys.executable, "-m", "overlace.cli.main", *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
