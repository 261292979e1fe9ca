"""The processes of a lab host whose agent runs under a Windows Python, in their order.

Owns their command lines, ports, logs and pids. From below: `overlace hns serve` and the engine stand-in, Linux processes
that play what Windows has; the engine's named pipe and the agent, Windows programs under Wine in a prefix of the host's
own; and a unix socket through which this machine reaches the agent's API. All are in the host's network namespace. Must
not know what they do once they answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlace.lab import netns, processes
from overlace.lab.layout import OUTSIDE_ADDRESS, WINDOWS_BUILD, Host, LabPlan
from overlace.lab.shell import tail
from overlace.lab.spawn import spawn, stop, wait_gone, wait_until
from overlace.lab.windows import door, wine
from overlace.lab.windows.build import PIPE
from overlace.lab.windows.prefix import ensure_prefix
from overlace.model.errors import Internal
from overlace.network.hostports import listening

# On loopback, which is the host's own.
API_PORT = 2375
HNS_PORT = 48100
ENGINE_PORT = 48101
ENGINE_PIPE = r"\\.\pipe\docker_engine"
API_PIPE = "npipe:////./pipe/overlace"
WINDOWS_PIDFILE = r"C:\ProgramData\overlace\daemon.pid"
START_SECONDS = 60.0


def log_of(host: Host, part: str) -> str:
    """The log of one of the host's parts: hns, engine, pipe."""
    return f"{host.log.removesuffix('.log')}-{part}.log"


def pidfile_of(host: Host, part: str) -> str:
    """Where the process of a part is noted."""
    return f"{host.pidfile}-{part}"


def _runs(host: Host, part: str) -> bool:
    return processes.read_pid(pidfile_of(host, part), host.netns) is not None


def _start(host: Host, part: str, argv: Sequence[str], more: Mapping[str, str] | None = None) -> None:
    if not _runs(host, part):
        spawn([*netns.enter(host.netns, host.uts), *argv], log_of(host, part), pidfile_of(host, part), more)


def _wait_port(host: Host, part: str, port: int, timeout: float) -> None:
    """Until the part listens on its port of the host's loopback."""
    file = pidfile_of(host, part)

    def listens() -> bool:
        pid = processes.read_pid(file, host.netns)
        return pid is not None and any(p[1:] == (6, port) for p in listening(Path(f"/proc/{pid}/net")))

    wait_until(f"{part} of {host.name}", listens, file, log_of(host, part), timeout)


# -- what Windows itself would have ------------------------------------------------------------------------------


def hns_exec_root(host: Host) -> Path:
    """What HNS keeps until the next reboot."""
    return Path(host.exec_root, "hns")


def hns_argv(host: Host) -> list[str]:
    """The host's HNS as a command."""
    argv = [sys.executable, "-m", "overlace.cli.main", "hns", "serve", "--backend", "linux"]
    argv += ["--port", str(HNS_PORT), "--provider-address", host.address]
    argv += ["--state", f"{host.data_root}/hns", "--exec-root", str(hns_exec_root(host))]
    return [*argv, "--containers", f"{host.exec_root}/engine/namespaces"]


def start_hns(host: Host) -> None:
    """Start the host's HNS, with packets, unless it runs."""
    _start(host, "hns", hns_argv(host))


def wait_hns(host: Host, timeout: float) -> None:
    """Until HNS listens; `timeout` in seconds. Raises as `_wait_port`."""
    _wait_port(host, "hns", HNS_PORT, timeout)


def stop_hns(host: Host, sig: signal.Signals, timeout: float) -> None:
    """End it alone; the packets of what it made go on."""
    stop(f"HNS of {host.name}", pidfile_of(host, "hns"), host.netns, log_of(host, "hns"), sig, timeout)


def engine_argv(plan: LabPlan, host: Host) -> list[str]:
    """The stand-in for Docker on Windows as a command."""
    argv = [sys.executable, "-m", "overlace.lab.windows.engine", "--listen", f"127.0.0.1:{ENGINE_PORT}"]
    argv += ["--data-root", f"{host.data_root}/engine", "--exec-root", f"{host.exec_root}/engine"]
    argv += ["--hns", str(HNS_PORT), "--record", record_of(host), "--build", WINDOWS_BUILD]
    argv += ["--drive", f"C={host.prefix}/drive_c", "--drive", "Z=/"]
    return [*argv, "--insecure-registry", plan.registry, "--cgroup-parent", f"/overlace/{host.instance}"]


def record_of(host: Host) -> str:
    """The file in which the engine stand-in notes every request."""
    return f"{host.data_root}/engine-record.jsonl"


def start_engine(plan: LabPlan, host: Host) -> None:
    """Start the engine stand-in and its named pipe, unless they run. Raises Unavailable without Wine."""
    for folder in (f"{host.data_root}/engine", f"{host.exec_root}/engine"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    ensure_prefix(Path(host.prefix), WINDOWS_BUILD)
    _start(host, "engine", engine_argv(plan, host))
    program = Path(host.prefix, "drive_c", "windows", "system32", PIPE)
    _start(host, "pipe", wine.program(program, [ENGINE_PIPE, str(ENGINE_PORT)]), _environment(host))


def wait_engine(host: Host, timeout: float) -> None:
    """Until the engine stand-in listens; `timeout` in seconds."""
    _wait_port(host, "engine", ENGINE_PORT, timeout)


def stop_engine(host: Host, sig: signal.Signals, timeout: float) -> None:
    """End the engine stand-in, and with it its pipe; containers go on."""
    stop(
        f"the pipe of {host.name}",
        pidfile_of(host, "pipe"),
        host.netns,
        log_of(host, "pipe"),
        signal.SIGKILL,
        timeout,
    )
    stop(
        f"the engine of {host.name}",
        pidfile_of(host, "engine"),
        host.netns,
        log_of(host, "engine"),
        sig,
        timeout,
    )


# -- the agent ---------------------------------------------------------------------------------------------------


def _environment(host: Host) -> dict[str, str]:
    return {
        **wine.environment(Path(host.prefix)),
        "PYTHONPATH": ";".join(wine.sources()),
        "PYTHONPYCACHEPREFIX": wine.windows_path(wine.home() / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",  # whatever is set here: compiling all of it at each start takes seconds
        "PYTHONUTF8": "1",
        "OVERLACE_HNS_PORT": str(HNS_PORT),
    }


def agent_argv(plan: LabPlan, host: Host) -> list[str]:
    """What a person would type on such a host, without `overlace`. Its folders are Windows' own, on drive C:."""
    argv = ["daemon", "-H", API_PIPE, "-H", f"tcp://127.0.0.1:{API_PORT}", "--pidfile", WINDOWS_PIDFILE]
    argv += ["--hostname", host.name, "--underlay-address", host.address]
    return [*argv, "--insecure-registry", plan.registry, "--dns", OUTSIDE_ADDRESS]


def start_agent(plan: LabPlan, host: Host) -> None:
    """Start the agent, and the socket to its API, unless they run. Raises Unavailable without Wine or the Windows Python,
    Internal when it does not come to life."""
    Path(host.exec_root).mkdir(parents=True, exist_ok=True)
    ensure_prefix(Path(host.prefix), WINDOWS_BUILD)
    _start(host, "door", [sys.executable, str(door.__file__), host.socket, str(API_PORT)])
    if processes.read_pid(host.pidfile, host.netns) is not None:
        return
    Path(host.pidfile).unlink(missing_ok=True)
    words = ["-m", "overlace.cli.main", *agent_argv(plan, host)]
    argv = wine.python_command(words, Path(host.log), append=True)
    _start(host, "wine", argv, _environment(host))
    found: list[int] = []

    def lives() -> bool:
        found[:] = agent_pids(host)
        return bool(found)

    what = f"the Windows Python of {host.name}"
    wait_until(what, lives, pidfile_of(host, "wine"), host.log, START_SECONDS)
    Path(host.pidfile).write_text(f"{found[0]}\n")


def agent_pids(host: Host) -> list[int]:
    """The Linux process that is the host's Windows Python running the agent."""
    found = []
    for pid in processes.find([host.netns], []):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"\\python.exe") and b"overlace.cli.main" in words:
                found.append(pid)
    return found


def stop_agent(host: Host, sig: signal.Signals, timeout: float) -> None:
    """End the agent alone: by SIGKILL, or as one asks a program of Windows to stop, for which any other signal stands."""
    what = f"the daemon of {host.name}"
    pid = processes.read_pid(host.pidfile, host.netns)
    if pid is None:
        return
    if sig == signal.SIGKILL:
        os.kill(pid, sig)
    else:
        _ask_to_stop(host)
    wait_gone(what, pid, f"after {sig.name}", host.log, timeout)
    wine_pid = processes.read_pid(pidfile_of(host, "wine"), host.netns)
    if wine_pid is not None:  # the command that started it, which ends with it
        wait_gone(f"Wine of {host.name}", wine_pid, "after its program's end", log_of(host, "wine"), timeout)


def _ask_to_stop(host: Host) -> None:
    """Raises Internal when nobody could be asked."""
    where = Path(host.prefix, "drive_c", *WINDOWS_PIDFILE.split("\\")[1:])
    output = Path(log_of(host, "stop"))
    try:
        number = int(where.read_text())
    except (OSError, ValueError) as error:
        raise Internal(f"the daemon of {host.name} cannot be asked to stop: {error}") from None
    script = Path(__file__).with_name("stop.py")
    argv = wine.command(script, [str(number)], output)
    with open(log_of(host, "wine"), "ab") as log:
        done = subprocess.run(
            [*netns.enter(host.netns, host.uts), *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **_environment(host)},
            timeout=START_SECONDS,
        )
    if done.returncode:
        raise Internal(f"the daemon of {host.name} was not there to be asked to stop:\n{tail(output)}")
