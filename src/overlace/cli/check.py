"""`overlace check`: can this machine be a host?

Owns the list of what a host needs and the sentences that say so. Must not change anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from overlace.network.balancing import find_cgroup2

# Debian's package for each program a host runs.
TOOLS = {
    "conmon": "conmon",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}
RUNTIMES = ("runc", "crun")
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}  # asm/unistd.h
TCX_KERNEL = (6, 6)


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at: `ok`, or what is wrong; `fatal` means no host without it."""

    ok: bool
    text: str
    fatal: bool = True


def check_root() -> Finding:
    if os.geteuid() == 0:
        return Finding(True, "running as root")
    return Finding(False, f"running as user {os.geteuid()}; the daemon and the lab need root")


def kernel_version(release: str) -> tuple[int, int]:
    """(major, minor) of a kernel release such as `6.1.0-35-amd64`; (0, 0) when it is no such thing."""
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def check_kernel(release: str) -> Finding:
    version = kernel_version(release)
    if version < (5, 17):  # bpf_loop
        return Finding(False, f"kernel {release} is too old; 5.17 is the oldest that can work")
    if version < TCX_KERNEL:
        return Finding(True, f"kernel {release}: no tcx before 6.6, programs are attached by clsact")
    return Finding(True, f"kernel {release}")


def check_tools(which: Callable[[str], str | None] = shutil.which) -> list[Finding]:
    """One finding for each missing program, or one that says none is."""
    missing = [(tool, package) for tool, package in TOOLS.items() if which(tool) is None]
    found = [
        Finding(False, f"{tool} is missing; apt-get install {package}, or make setup")
        for tool, package in missing
    ]
    runtimes = [name for name in RUNTIMES if which(name)]
    if not runtimes:
        found.append(Finding(False, "neither runc nor crun is there; apt-get install runc, or make setup"))
    return found or [Finding(True, f"programs: {', '.join([*TOOLS, *runtimes])}")]


def check_etcd(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """Only several managers need it."""
    if which("etcd"):
        return Finding(True, "etcd: this host can be one of several managers")
    why = "etcd is missing: this host cannot be one of several managers; apt-get install etcd-server"
    return Finding(False, why, fatal=False)


def check_bpf() -> Finding:
    """Ask the kernel for a map (bpf(2), BPF_MAP_CREATE): needs CONFIG_BPF_SYSCALL and the right to use it."""
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return Finding(False, f"machine {platform.machine()} is not supported; x86_64 and aarch64 are")
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(1, 4, 4, 1)  # type hash, key 4 bytes, value 4 bytes, 1 entry
    fd = libc.syscall(number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd >= 0:
        os.close(fd)
        return Finding(True, "eBPF: the kernel makes maps")
    code = ctypes.get_errno()
    why = {errno.ENOSYS: "kernel built without CONFIG_BPF_SYSCALL", errno.EPERM: "not permitted; run as root"}
    return Finding(False, f"eBPF does not work: {why.get(code, os.strerror(code))}")


def check_bpffs() -> Finding:
    if os.path.ismount("/sys/fs/bpf"):
        return Finding(True, "bpffs is mounted at /sys/fs/bpf")
    if "\tbpf\n" in _read("/proc/filesystems"):
        return Finding(True, "bpffs is there, not mounted; the daemon mounts it at /sys/fs/bpf")
    return Finding(False, "the kernel has no bpffs, so programs could not outlive the daemon")


def check_overlayfs() -> Finding:
    if "\toverlay\n" in _read("/proc/filesystems"):
        return Finding(True, "overlayfs")
    return Finding(False, "the kernel has no overlayfs (CONFIG_OVERLAY_FS); containers' file systems need it")


def check_cgroups() -> Finding:
    hierarchy = _read("/proc/self/cgroup")
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return Finding(True, "cgroups v2")
    if ":memory:" in hierarchy and os.path.isdir("/sys/fs/cgroup/memory"):
        return Finding(True, "cgroups v1 (hybrid); runc works here, crun may refuse")
    return Finding(False, "no cgroup controllers are mounted at /sys/fs/cgroup; containers cannot be limited")


def check_balancing() -> Finding:
    """Where connections to services can be given their backends."""
    cgroup = find_cgroup2(_read("/proc/self/mountinfo"))
    if cgroup is not None:
        return Finding(True, f"cgroup v2 at {cgroup}: services can be balanced at the socket level")
    return Finding(False, "no cgroup v2 is mounted: services are balanced at the packet level", fatal=False)


def check_objects() -> Finding:
    """The eBPF programs are built by `make setup` and only loaded here."""
    import overlace

    found = sorted(Path(next(iter(overlace.__path__))).glob("network/linux/**/*.o"))
    if found:
        return Finding(True, f"eBPF programs built: {', '.join(path.name for path in found)}")
    return Finding(
        False, "eBPF programs are not built; python -m overlace.network.linux.build, or make setup"
    )


def check_docker() -> Finding:
    beside = os.path.join(os.path.dirname(sys.executable), "docker")
    found = shutil.which("docker") or (beside if os.access(beside, os.X_OK) else None)
    if found:
        return Finding(True, f"docker CLI at {found}")
    return Finding(False, "no docker CLI here to drive the swarm with; make setup provides one", fatal=False)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def check_machine() -> list[Finding]:
    """Everything a host needs, looked at now."""
    return [
        check_root(),
        check_kernel(platform.release()),
        check_bpf(),
        check_bpffs(),
        check_overlayfs(),
        check_cgroups(),
        check_balancing(),
        *check_tools(),
        check_etcd(),
        check_objects(),
        check_docker(),
    ]


@click.command()
def check() -> None:
    """Can this machine be a host? Exits 1 and says what is missing if not."""
    findings = check_machine()
    for finding in findings:
        mark = "ok     " if finding.ok else "MISSING" if finding.fatal else "note   "
        click.echo(f"{mark}  {finding.text}")
    missing = [finding for finding in findings if finding.fatal and not finding.ok]
    if missing:
        click.echo(f"\nThis machine cannot be a host yet: {len(missing)} of the points above.")
        raise SystemExit(1)
    click.echo("\nThis machine can be a host.")
