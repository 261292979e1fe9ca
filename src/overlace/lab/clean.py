"""Taking a host or a lab away, whatever state a crash left it in.

Owns the removal of processes, mounts, BPF pins, cgroups, namespaces and files. Works from the plan and
from what the kernel shows, never from a daemon's word: `down` must work with every daemon dead. Every
remove_* may be repeated.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from overlace.cli.hns import instance_of
from overlace.lab import netns, processes
from overlace.lab.layout import Host, LabPlan
from overlace.lab.shell import run
from overlace.lab.windows import host as windows
from overlace.lab.windows.prefix import remove_server_folder
from overlace.model.errors import Internal

BPF_ROOT = "/sys/fs/bpf/overlace"


def remove_mounts(roots: Collection[str]) -> None:
    """Unmount everything at or below `roots`, newest first."""
    points = [point for point, _, _ in processes.mounts() if processes.below(point, roots)]
    for point in reversed(points):
        run(["umount", "--lazy", point], check=False)
    left = [point for point, _, _ in processes.mounts() if processes.below(point, roots)]
    if left:
        raise Internal(f"cannot unmount {', '.join(left)}")


def remove_tree(path: str | Path) -> None:
    """Remove a folder and all in it. Refuses while something is mounted below, so as not to empty what is
    mounted.
    """
    if not os.path.lexists(path):
        return
    root = os.path.realpath(path)
    held = [point for point, _, _ in processes.mounts() if processes.below(point, [root])]
    if held:
        raise Internal(f"{held[0]} is still mounted; not removing {path}")
    shutil.rmtree(path)


def remove_pins(host: Host) -> None:
    """Unpin the host's BPF programs, maps and links: bpffs has files and folders only."""
    instances = [host.instance]
    if host.windows_python:
        instances.append(instance_of(windows.hns_exec_root(host)))
    for instance in instances:
        for folder, _, files in os.walk(os.path.join(BPF_ROOT, instance), topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


def remove_cgroups(host: Host) -> None:
    """Remove the cgroups of the host's containers in every hierarchy (v1, v2 or both), leaves first."""
    ours = f"overlace/{host.instance}"
    for root in (*glob.glob(f"/sys/fs/cgroup/{ours}"), *glob.glob(f"/sys/fs/cgroup/*/{ours}")):
        for folder, _, _ in os.walk(root, topdown=False):
            _remove_cgroup(folder)


def _remove_cgroup(folder: str) -> None:
    """A cgroup stays busy for a moment after its last process died."""
    for _ in range(50):
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
    raise Internal(f"cgroup {folder} is still in use")


def cut_power(host: Host) -> None:
    """What a power cut takes: processes, mounts, everything the kernel held for the host. Its disk stays."""
    roots = [root for root in (host.exec_root, host.data_root) if root]
    processes.kill_all([host.netns], roots)
    if roots:
        remove_mounts(roots)
        remove_pins(host)
        remove_cgroups(host)
        remove_tree(host.exec_root)
    netns.remove_host(host)
    if host.windows_python:
        remove_server_folder(Path(host.prefix))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(host.pidfile) if host.pidfile else None


def remove_lab(plan: LabPlan) -> None:
    """Take everything of the lab away. Goes on after a failure and raises the first at the end, so that
    one stuck mount does not leave the rest behind; the plan's file goes last, so that `down` can be
    repeated.
    """
    failures: list[Exception] = []

    def attempt(step: object, *args: object) -> None:
        assert callable(step)
        try:
            step(*args)
        except (Internal, OSError) as error:
            failures.append(error)

    attempt(processes.kill_all, [name for name in plan.netns if netns.exists(name)], [plan.run, plan.data])
    for host in plan.hosts:
        attempt(cut_power, host)
    attempt(remove_mounts, [plan.run, plan.data])
    for name in plan.netns:
        attempt(netns.remove, name)
    attempt(netns.remove_shell_link, plan)
    attempt(remove_tree, plan.data)
    if failures:
        raise Internal(f"lab {plan.name} is not fully removed: {failures[0]}") from failures[0]
    remove_tree(plan.run)
