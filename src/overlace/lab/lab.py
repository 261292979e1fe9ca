"""The lab itself: up, status, exec, kill, start, down, for the command line, the demo and the tests.

Owns the order of things and the plan's file. The pieces are in netns, daemons, swarm and clean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from overlace.lab import clean, daemons, engine, netns, processes, spawn, swarm
from overlace.lab.layout import (
    DEFAULT_NAME,
    UNDERLAY_MTU,
    WINDOWS_PYTHON,
    Host,
    HostView,
    LabPlan,
    LabView,
    Paths,
    RuntimeKind,
    check_name,
    plan_lab,
    plan_number,
)
from overlace.lab.shell import run
from overlace.lab.windows import host as windows
from overlace.lab.windows import wine
from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
)

BPFFS = "/sys/fs/bpf"
STATE = "lab.json"


def _quiet(line: str) -> None:
    """Say nothing."""


def say_on_stderr(line: str) -> None:
    """Print a line of progress; nobody listening any more is no reason to leave a lab half built."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Lab:
    """A running lab. Make one with `Lab.up`, find one with `Lab.open`; as a context manager it goes down
    at the end.
    """

    def __init__(self, plan: LabPlan, program: Sequence[str] | None = None) -> None:
        self.plan = plan
        self._program = program

    # -- coming and going --------------------

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        *,
        linux: int = 2,
        windows: int = 1,
        windows_python: int = 0,
        managers: int = 1,
        form_swarm: bool = True,
        mtu: int = UNDERLAY_MTU,
        runtime: RuntimeKind = "oci",
        ipv6_underlay: bool = False,
        say: Callable[[str], None] = _quiet,
        paths: Paths | None = None,
        program: Sequence[str] | None = None,
        timeout: float = 60,
    ) -> Lab:
        """Build a lab, start its daemons and, unless `form_swarm` is False, make them one swarm.

        `program` replaces the `overlace` program on the hosts; `timeout` bounds, in seconds, each wait for
        a daemon and for the swarm. What fails is taken down again. Raises Conflict when the name is in
        use, InvalidArgument for counts that cannot work, PermissionDenied when not root, Unavailable without the
        Windows Python it needs, Internal with the end of the log that tells why.
        """
        _need_root()
        if windows_python:
            wine.ensure_current()
        paths = paths or Paths()
        with _locked(paths):
            if _load(paths, check_name(name)) is not None:
                raise Conflict(
                    f"lab {name} exists already; use it, remove it with `overlace lab down {name}`,"
                    " or choose another name"
                )
            number = plan_number(netns.taken_numbers() | {plan.number for plan in _load_all(paths)})
            plan = plan_lab(
                name,
                number,
                linux=linux,
                windows=windows,
                windows_python=windows_python,
                managers=managers,
                paths=paths,
                mtu=mtu,
                runtime=runtime,
                ipv6_underlay=ipv6_underlay,
            )
            clean.remove_lab(plan)  # what a reboot or a crash between files and plan left under this name
            _save(plan)
        lab = cls(plan, program)
        try:
            lab._build(say)
            lab._start(say, timeout)
            if form_swarm:
                swarm.form(plan.hosts, say, timeout)
        except BaseException:
            say(f"lab {name} did not come up; taking it down again")
            with contextlib.suppress(OverlaceError):
                lab.down()
            raise
        return lab

    @classmethod
    def open(
        cls, name: str = DEFAULT_NAME, *, paths: Paths | None = None, program: Sequence[str] | None = None
    ) -> Lab:
        """Find a lab that is up. Raises NotFound, naming those there are."""
        paths = paths or Paths()
        plan = _load(paths, check_name(name))
        if plan is None:
            there = ", ".join(sorted(plan.name for plan in _load_all(paths))) or "none"
            raise NotFound(f"no lab {name}; labs there are: {there}. `overlace lab up {name}` makes it")
        return cls(plan, program)

    @classmethod
    def names(cls, paths: Paths | None = None) -> list[str]:
        return sorted(plan.name for plan in _load_all(paths or Paths()))

    @classmethod
    def remove(cls, name: str = DEFAULT_NAME, *, paths: Paths | None = None) -> None:
        """Take a lab away by name; what a reboot left of one (its data, without its plan) counts as one, too.

        Raises NotFound, naming the labs there are, when there is nothing of that name.
        """
        _need_root()
        paths = paths or Paths()
        left = paths.lab_data(check_name(name))
        if _load(paths, name) is None and left.exists():
            clean.remove_tree(left)
        else:
            cls.open(name, paths=paths).down()

    def down(self) -> None:
        """Take the lab away, whatever state it is in. May be repeated."""
        _need_root()
        clean.remove_lab(self.plan)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def _build(self, say: Callable[[str], None]) -> None:
        plan = self.plan
        say(f"lab {plan.name}: underlay {plan.address(0)}/24, registry {plan.registry}")
        ensure_bpffs()
        netns.ensure_switch(plan)
        netns.ensure_station(plan, plan.registry_netns, plan.registry_address, "registry")
        for host in plan.hosts:
            netns.ensure_host(plan, host)

    def _start(self, say: Callable[[str], None], timeout: float) -> None:
        plan = self.plan
        daemons.start_registry(plan)
        with_daemon = [host for host in plan.hosts if host.exec_root]
        for host in with_daemon:
            daemons.start_engine(plan, host)
        for host in with_daemon:
            daemons.wait_engine(host, timeout)
        for host in with_daemon:
            say(f"{host.name}: daemon at {host.address}{_played(host)}")
            daemons.start_daemon(plan, host, self._program)
        log, pidfile, _ = daemons.registry_files(plan)
        spawn.wait_until("the registry", self.registry_answers, pidfile, log, timeout)
        for host in with_daemon:
            daemons.wait_daemon(host, timeout)

    def registry_answers(self) -> bool:
        """True when the lab's registry answers this machine."""
        import urllib.request

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.plan.registry}/v2/", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    # -- looking --------------------

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def registry(self) -> str:
        """`address:port` of the lab's registry, reached over plain HTTP from every host and from this
        machine.
        """
        return self.plan.registry

    @property
    def hosts(self) -> tuple[Host, ...]:
        return self.plan.hosts

    @property
    def manager(self) -> Host:
        return next(host for host in self.plan.hosts if host.role == "manager")

    def host(self, name: str) -> Host:
        return self.plan.host(name)

    def pid(self, name: str) -> int | None:
        """The daemon's process, None when it does not run."""
        host = self.host(name)
        return processes.read_pid(host.pidfile, host.netns) if host.pidfile else None

    def log(self, name: str) -> str:
        """Path of the log of a host's daemon, or of the registry's."""
        if name == "registry":
            return daemons.registry_files(self.plan)[0]
        host = self.host(name)
        if not host.log:
            raise InvalidArgument(f"{name} runs no daemon, so it has no log")
        return host.log

    def answers(self, name: str) -> bool:
        """True when the host's daemon answers on its socket."""
        host = self.host(name)
        return bool(host.exec_root) and engine.ping(host.socket)

    def view(self) -> LabView:
        """The lab as `--json` prints it."""
        return LabView(
            name=self.plan.name,
            registry=self.plan.registry,
            hosts=tuple(
                HostView(
                    name=host.name,
                    os=host.os,
                    role=host.role,
                    address=host.address,
                    docker_host=host.docker_host,
                    netns=host.netns,
                    pid=self.pid(host.name),
                    emulated=host.emulated,
                    windows_python=host.windows_python,
                )
                for host in self.plan.hosts
            ),
        )

    # -- doing --------------------

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """The argument list that runs `argv` on a host; `switch` and `registry` are places to run things
        too.
        """
        if name == "switch":
            return [*netns.enter(self.plan.switch), *argv]
        if name == "registry":
            return [*netns.enter(self.plan.registry_netns), *argv]
        host = self.host(name)
        if not netns.exists(host.netns):
            raise FailedPrecondition(
                f"{name} is switched off; `overlace lab start {self.plan.name} {name}` starts it"
            )
        return [*netns.enter(host.netns, host.uts), *argv]

    def environment(self, name: str) -> dict[str, str]:
        """The environment on a host: ours, with DOCKER_HOST its own daemon and our virtualenv's programs
        in PATH.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")}
        environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}"
        host = next((host for host in self.plan.hosts if host.name == name), None)
        if host is not None and host.docker_host:
            environment["DOCKER_HOST"] = host.docker_host
        return environment

    def exec(
        self,
        name: str,
        *argv: str,
        timeout: float = 60,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host and return what it printed. With `check`, CalledProcessError carries its
        output.
        """
        return self._run(name, self.command(name, argv), timeout, check, stdin)

    def docker(
        self, name: str, *argv: str, timeout: float = 60, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI against a host's daemon, from this machine."""
        return self._run(name, [docker_program(), *argv], timeout, check, stdin)

    def _run(
        self, name: str, command: Sequence[str], timeout: float, check: bool, stdin: str | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(name),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    def kill_host(self, name: str) -> None:
        """Cut the host's power: daemon, containers, link and everything the kernel held are gone, its disk
        stays.
        """
        _need_root()
        clean.cut_power(self.host(name))

    def start_host(self, name: str, timeout: float = 60) -> None:
        """Switch a host on: its link and, where it has one, its daemon. A host that runs is left as it is."""
        _need_root()
        host = self.host(name)
        netns.ensure_host(self.plan, host)
        if host.exec_root:
            self.start_engine(name, timeout)
            daemons.start_daemon(self.plan, host, self._program)
            daemons.wait_daemon(host, timeout)

    def stop_daemon(self, name: str, sig: signal.Signals = signal.SIGTERM, timeout: float = 20) -> None:
        """End a host's daemon alone (SIGKILL: crash it); containers and their traffic go on."""
        daemons.stop_daemon(self.host(name), sig, timeout)

    def start_engine(self, name: str, timeout: float = 60) -> None:
        """Start the Docker Engine of a host that has one (before it, for a Windows Python, the HNS), unless it runs."""
        daemons.start_engine(self.plan, self.host(name))
        daemons.wait_engine(self.host(name), timeout)

    def stop_engine(self, name: str, sig: signal.Signals = signal.SIGTERM, timeout: float = 40) -> None:
        """End a host's Docker Engine alone; its containers go on."""
        daemons.stop_engine(self.host(name), sig, timeout)

    def start_hns(self, name: str, timeout: float = 60) -> None:
        """Start the HNS of a host with a Windows Python; one that runs is left alone."""
        host = self._with_windows_python(name)
        windows.start_hns(host)
        windows.wait_hns(host, timeout)

    def stop_hns(self, name: str, sig: signal.Signals = signal.SIGTERM, timeout: float = 20) -> None:
        """End the HNS of a host with a Windows Python; its packets go on."""
        windows.stop_hns(self._with_windows_python(name), sig, timeout)

    def restart(self, name: str, part: str = "daemon", sig: signal.Signals = signal.SIGTERM) -> None:
        """Restart a host's `daemon`, `engine` or `hns` alone. Raises InvalidArgument for what the host does not have."""
        host = self.host(name)
        if part == "hns":
            self.stop_hns(name, sig)
            self.start_hns(name)
        elif part == "engine":
            if host.runtime != "docker" and not host.windows_python:
                raise InvalidArgument(
                    f"{name} has no Docker Engine: its containers are the embedded runtime's"
                )
            self.stop_engine(name, sig)
            self.start_engine(name)
        else:
            if not host.exec_root:
                raise InvalidArgument(f"{name} runs no daemon")
            self.stop_daemon(name, sig)
            self.start_host(name)

    def _with_windows_python(self, name: str) -> Host:
        host = self.host(name)
        if not host.windows_python:
            raise InvalidArgument(
                f"{name} has no HNS service of its own: it is no host with a Windows Python"
            )
        return host

    def set_link(self, name: str, up: bool) -> None:
        """Pull a host's network cable, or plug it in again; the host itself goes on."""
        run(
            [
                *netns.enter(self.plan.switch),
                "ip",
                "link",
                "set",
                self.host(name).name,
                "up" if up else "down",
            ]
        )


def _played(host: Host) -> str:
    if host.windows_python:
        return f" ({WINDOWS_PYTHON})"
    return " (emulated Windows)" if host.emulated else ""


def docker_program() -> str:
    """The docker CLI: the one on PATH, else the one `make setup` put beside this interpreter."""
    beside = os.path.join(os.path.dirname(sys.executable), "docker")
    found = shutil.which("docker") or (beside if os.access(beside, os.X_OK) else None)
    if found is None:
        raise FailedPrecondition("no docker CLI on PATH; `make setup` provides one")
    return found


def ensure_bpffs() -> None:
    """Mount bpffs where systemd would, when nothing did."""
    if not os.path.ismount(BPFFS):
        run(["mount", "-t", "bpf", "bpf", BPFFS])


def _need_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied("the lab makes network namespaces and starts daemons: run it as root")


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """One `up` at a time chooses its number and writes its plan."""
    Path(paths.run).mkdir(parents=True, exist_ok=True)
    with open(f"{paths.run}/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _save(plan: LabPlan) -> None:
    folder = Path(plan.run)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{STATE}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    new.replace(folder / STATE)


def _load(paths: Paths, name: str) -> LabPlan | None:
    try:
        return msgspec.json.decode((paths.lab_run(name) / STATE).read_bytes(), type=LabPlan)
    except FileNotFoundError:
        return None


def _load_all(paths: Paths) -> list[LabPlan]:
    try:
        names = os.listdir(paths.run)
    except FileNotFoundError:
        return []
    return [
        plan for name in names if (plan := _load(paths, name) if (Path(paths.run) / name).is_dir() else None)
    ]
