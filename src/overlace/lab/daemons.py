"""Starting and watching what runs on the lab's hosts: `overlace daemon` and the registry.

Owns command lines, pid files and logs. Must not know what a daemon does once it answers.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from overlace.lab import engine, netns, processes
from overlace.lab.layout import OUTSIDE_ADDRESS, WINDOWS_BUILD, Host, LabPlan
from overlace.lab.spawn import spawn, stop, wait_until
from overlace.lab.windows import host as windows
from overlace.model.errors import FailedPrecondition

REGISTRY_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: {address}
"""


def daemon_argv(plan: LabPlan, host: Host) -> list[str]:
    """The daemon's command line, without the program: what a person would type on such a host."""
    argv = ["daemon", "--data-root", host.data_root, "--exec-root", host.exec_root]
    argv += ["-H", f"unix://{host.socket}", "--hostname", host.name, "--underlay-address", host.underlay]
    # Names that are no service are asked beyond the underlay, where nobody listens unless a test starts a
    # server there: a lab never asks this machine's own name servers, and a refusal comes at once.
    argv += ["--insecure-registry", plan.registry, "--dns", OUTSIDE_ADDRESS]
    if host.runtime == "docker":
        argv += ["--runtime", "docker", "--docker-host", f"unix://{host.engine_socket}"]
    if host.emulated:
        argv += ["--emulate-windows", WINDOWS_BUILD]
    else:  # pretended ones, so that reservations can be tried: two by name, and a number
        for resource in (f"gpu={host.name}-gpu0", f"gpu={host.name}-gpu1", "licence=3"):
            argv += ["--node-generic-resource", resource]
    return argv


def start_daemon(plan: LabPlan, host: Host, program: Sequence[str] | None = None) -> None:
    """Start the host's daemon unless it runs. `program` replaces this interpreter's `overlace`, except where a Windows
    Python runs it."""
    if host.windows_python:
        windows.start_agent(plan, host)
        return
    if processes.read_pid(host.pidfile, host.netns) is not None:
        return
    for folder in (host.data_root, host.exec_root):
        Path(folder).mkdir(parents=True, exist_ok=True)
    program = list(program or [sys.executable, "-m", "overlace.cli.main"])
    spawn([*netns.enter(host.netns, host.uts), *program, *daemon_argv(plan, host)], host.log, host.pidfile)


def engine_argv(plan: LabPlan, host: Host, dockerd: str) -> list[str]:
    """The command line of the host's own Docker Engine: it keeps its hands off the host's network, which is ours, and its
    containers through its own restarts."""
    data, run = f"{host.data_root}/engine", f"{host.exec_root}/engine"
    argv = [dockerd, "--data-root", data, "--exec-root", run, "--pidfile", host.engine_pidfile]
    argv += [
        "--host",
        f"unix://{host.engine_socket}",
        "--config-file",
        f"{run}/daemon.json",
        "--live-restore",
    ]
    argv += [
        "--bridge",
        "none",
        "--iptables=false",
        "--ip-forward=false",
        "--insecure-registry",
        plan.registry,
    ]
    argv += ["--cgroup-parent", f"/overlace/{host.instance}", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    return argv


def start_engine(plan: LabPlan, host: Host) -> None:
    """Start the Docker Engine of a host with runtime docker, or what plays it for a Windows Python, unless it runs.

    Raises FailedPrecondition without one.
    """
    if host.windows_python:
        windows.start_hns(host)
        windows.start_engine(plan, host)
        return
    if host.runtime != "docker" or processes.read_pid(host.engine_pidfile, host.netns) is not None:
        return
    dockerd = shutil.which(
        "dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    )
    if dockerd is None:
        raise FailedPrecondition("no dockerd on this machine: `make setup` installs Debian's docker.io")
    run = Path(host.engine_pidfile).parent
    for folder in (Path(host.data_root, "engine"), run):
        folder.mkdir(parents=True, exist_ok=True)
    (run / "daemon.json").write_text("{}")  # not this machine's own settings
    # Of one that was killed: dockerd takes a number in use, if only by a zombie, for itself or for its containerd.
    for left in (host.engine_pidfile, f"{run}/containerd/containerd.pid"):
        if processes.read_pid(left, host.netns) is None:
            Path(left).unlink(missing_ok=True)
    argv = [*netns.enter(host.netns, host.uts), *engine_argv(plan, host, dockerd)]
    spawn(argv, host.engine_log, f"{run}/spawn.pid")


def wait_engine(host: Host, timeout: float) -> None:
    """Until the host's Docker Engine answers; a host without one: at once."""
    if host.windows_python:
        windows.wait_hns(host, timeout)
        windows.wait_engine(host, timeout)
        return
    if host.runtime == "docker":
        pidfile = f"{Path(host.engine_pidfile).parent}/spawn.pid"
        wait_until(
            f"dockerd of {host.name}",
            lambda: engine.ping(host.engine_socket),
            pidfile,
            host.engine_log,
            timeout,
        )


def start_registry(plan: LabPlan) -> None:
    """Start the lab's registry in its namespace."""
    log, pidfile, config = registry_files(plan)
    if processes.read_pid(pidfile, plan.registry_netns) is not None:
        return
    root = Path(plan.run) / "registry"
    root.mkdir(parents=True, exist_ok=True)
    Path(config).write_text(REGISTRY_CONFIG.format(root=root, address=plan.registry))
    spawn([*netns.enter(plan.registry_netns), "docker-registry", "serve", config], log, pidfile)


def registry_files(plan: LabPlan) -> tuple[str, str, str]:
    """(log, pidfile, configuration) of the lab's registry."""
    return f"{plan.run}/log/registry.log", f"{plan.run}/pid/registry", f"{plan.run}/registry.yml"


def wait_daemon(host: Host, timeout: float) -> None:
    wait_until(
        f"the daemon of {host.name}", lambda: engine.ping(host.socket), host.pidfile, host.log, timeout
    )


def stop_daemon(host: Host, sig: signal.Signals, timeout: float) -> None:
    """Send `sig` to the daemon alone, and wait for its end; containers go on. No daemon: nothing to do."""
    if host.windows_python:
        windows.stop_agent(host, sig, timeout)
        return
    stop(f"the daemon of {host.name}", host.pidfile, host.netns, host.log, sig, timeout)


def stop_engine(host: Host, sig: signal.Signals, timeout: float) -> None:
    """The same with its Docker Engine."""
    if host.windows_python:
        windows.stop_engine(host, sig, timeout)
        return
    stop(f"dockerd of {host.name}", host.engine_pidfile, host.netns, host.engine_log, sig, timeout)
