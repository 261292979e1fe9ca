"""What every container gets unless told otherwise: capabilities, hidden paths, base mounts, refused system
calls.

Data only. Capabilities, masked and read-only paths are Docker's (moby `oci/defaults.go`,
`oci/caps/defaults.go`).
"""

from __future__ import annotations

from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
# capabilities(7), in the kernel's order.
ALL_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def base_mounts() -> list[dict[str, Any]]:
    """The kernel's file systems a container sees; sizes as Docker's (64 MiB of shared memory)."""
    plain = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*plain, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*plain, "ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*plain, "mode=1777", "size=65536k"],
        },
    ]


# System calls refused with EPERM, each with the capability that brings it back. The calls Docker's
# documentation names as "significant syscalls blocked by the default profile"; everything else is allowed, so
# this is wider than Docker's own allow-list profile.
_REFUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "",
        (
            "add_key",
            "get_mempolicy",
            "keyctl",
            "mbind",
            "move_pages",
            "nfsservctl",
            "request_key",
            "set_mempolicy",
            "swapon",
            "swapoff",
            "sysfs",
            "_sysctl",
            "userfaultfd",
            "uselib",
            "ustat",
            "vm86",
            "vm86old",
        ),
    ),
    ("CAP_SYS_PACCT", ("acct",)),
    (
        "CAP_SYS_ADMIN",
        (
            "bpf",
            "lookup_dcookie",
            "mount",
            "move_mount",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "setns",
            "umount",
            "umount2",
            "unshare",
        ),
    ),
    ("CAP_SYS_TIME", ("clock_adjtime", "clock_settime", "settimeofday", "stime")),
    (
        "CAP_SYS_MODULE",
        ("create_module", "delete_module", "finit_module", "get_kernel_syms", "init_module", "query_module"),
    ),
    ("CAP_SYS_RAWIO", ("ioperm", "iopl")),
    ("CAP_SYS_PTRACE", ("kcmp",)),
    ("CAP_SYS_BOOT", ("kexec_file_load", "kexec_load", "reboot")),
    ("CAP_DAC_READ_SEARCH", ("open_by_handle_at",)),
)


def seccomp(capabilities: frozenset[str]) -> dict[str, Any]:
    """The system call filter for a container holding these capabilities."""
    names = [name for capability, calls in _REFUSED if capability not in capabilities for name in calls]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": sorted(names), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
