"""From an image's config and a container's to the OCI runtime's `config.json`.

`resolve` decides what runs (argv, environment, user, signal …) as Docker does, `runtime_spec` writes it
down (runtime-spec 1.0.2). Reads nothing but uname(2). Must not touch files, mounts or processes; host paths come in as
arguments.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from overlace.model.errors import InvalidArgument
from overlace.model.seccomp import profile_for
from overlace.runtime.base import ContainerConfig, Healthcheck, Mount
from overlace.runtime.oci import defaults
from overlace.runtime.oci.users import User

INIT_TARGET = "/sbin/docker-init"
_MIN_MEMORY = 6 << 20  # as Docker: below this a container does not even start
_CPU_PERIOD = 100_000  # µs, the kernel's default
_ULIMITS = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_IPC_SYSCTLS = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)
_PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
_DRIVE = re.compile(r"[A-Za-z]:[\\/]?")


class Resolved(msgspec.Struct, frozen=True):
    """What the image and the container's config say together."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    stop_signal: int
    hostname: str
    volumes: tuple[str, ...]  # targets the image wants a volume at and no mount covers
    healthcheck: Healthcheck | None = None


def container_path(path: str, windows: bool = False) -> str:
    """An absolute path in a container. On an emulated Windows host `C:\\a\\b` is `/a/b`: its one drive is the
    root.
    """
    if windows and (_DRIVE.match(path) or "\\" in path):
        path = "/" + _DRIVE.sub("", path, count=1).replace("\\", "/").lstrip("/")
    return path


def signal_number(name: str) -> int:
    """`SIGTERM`, `TERM`, `15` or `RTMIN+3` as a number. Raises InvalidArgument in Docker's words."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    realtime = re.fullmatch(r"RTM(IN|AX)([+-]\d+)?", text)
    if realtime:
        number = (34 if realtime[1] == "IN" else 64) + int(realtime[2] or 0)
        if 34 <= number <= 64:
            return number
    else:
        try:
            return int(signal.Signals["SIG" + text])
        except KeyError:
            pass
    raise InvalidArgument(f"invalid signal: {name}")


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def merge_environment(image: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """The image's variables, replaced and added to by the container's; a name without `=` unsets one. PATH is
    never absent.
    """
    merged: dict[str, str | None] = {}
    for entry in image:
        name, equals, value = entry.partition("=")
        merged[name] = value if equals else ""
    for entry in own:
        name, equals, value = entry.partition("=")
        merged[name] = value if equals else None
    kept = tuple(f"{name}={value}" for name, value in merged.items() if value is not None)
    return kept if any(entry.startswith("PATH=") for entry in kept) else (defaults.PATH, *kept)


def resolve(config: ContainerConfig, image: dict[str, Any], *, windows: bool = False) -> Resolved:
    """Merge as Docker does: an entrypoint of one's own also drops the image's Cmd.

    `image` is the image config's `config` object. Raises InvalidArgument when nothing is left to run or a
    field is wrong.
    """
    validate(config, windows=windows)
    if config.entrypoint is None:
        entrypoint = _strings(image.get("Entrypoint"))
        command = config.args if config.args is not None else _strings(image.get("Cmd"))
    else:
        entrypoint, command = config.entrypoint, config.args or ()
    argv = (*entrypoint, *command)
    if not argv or not argv[0]:
        raise InvalidArgument("no command specified")
    hostname = config.hostname or config.id[:12]
    extra = [f"HOSTNAME={hostname}", *(["TERM=xterm"] if config.tty else [])]
    env = merge_environment([*extra, *_strings(image.get("Env"))], config.env)
    cwd = container_path(config.workdir or str(image.get("WorkingDir") or "") or "/", windows)
    covered = {container_path(mount.target, windows).rstrip("/") for mount in config.mounts}
    volumes = image.get("Volumes") or {}
    wanted = tuple(sorted(container_path(str(target), windows) for target in volumes))
    return Resolved(
        argv=argv,
        env=env,
        cwd=cwd if cwd.startswith("/") else f"/{cwd}",
        user=str(image.get("User") or "") if config.user is None else config.user,
        stop_signal=signal_number(config.stop_signal or str(image.get("StopSignal") or "") or "SIGTERM"),
        hostname=hostname,
        volumes=tuple(target for target in wanted if target.rstrip("/") not in covered),
        healthcheck=merge_healthcheck(config.healthcheck, image.get("Healthcheck")),
    )


def merge_healthcheck(own: Healthcheck | None, image: object) -> Healthcheck | None:
    """The container's healthcheck over the image's; None when there is none or it is `NONE`.

    As in Docker a healthcheck without a test takes the image's test, and what it leaves at the default the
    image's value.
    """
    inherited: Healthcheck | None = None
    if isinstance(image, dict) and image.get("Test"):
        fields = {
            "interval": "Interval",
            "timeout": "Timeout",
            "start_period": "StartPeriod",
            "start_interval": "StartInterval",
            "retries": "Retries",
        }
        values = {ours: int(image[theirs]) for ours, theirs in fields.items() if image.get(theirs)}
        inherited = Healthcheck(test=_strings(image["Test"]), **values)
    if own is None:
        merged = inherited
    elif own.test or inherited is None:
        merged = own
    else:
        fresh = Healthcheck()
        changed = {
            name: getattr(own, name)
            for name in ("interval", "timeout", "start_period", "start_interval", "retries")
            if getattr(own, name) not in (0, getattr(fresh, name))
        }
        merged = msgspec.structs.replace(inherited, **changed)
    if merged is None or not merged.test or merged.test[0] == "NONE":
        return None
    fresh = Healthcheck()
    filled = {
        name: getattr(fresh, name)
        for name in ("interval", "timeout", "start_interval", "retries")
        if not getattr(merged, name)
    }
    return msgspec.structs.replace(merged, **filled)


def capabilities(add: Iterable[str], drop: Iterable[str]) -> tuple[str, ...]:
    """Docker's rules (`oci/caps/utils.go`): ALL on either side, names with or without CAP_. Raises
    InvalidArgument.
    """
    added, dropped = _capability_names(add, "cap_add"), _capability_names(drop, "cap_drop")
    start = (
        ()
        if "ALL" in dropped
        else defaults.ALL_CAPABILITIES
        if "ALL" in added
        else defaults.DEFAULT_CAPABILITIES
    )
    kept = {name for name in (*start, *added) if name != "ALL" and (name not in dropped or "ALL" in dropped)}
    return tuple(name for name in defaults.ALL_CAPABILITIES if name in kept)


def _capability_names(names: Iterable[str], field: str) -> tuple[str, ...]:
    found = []
    for name in names:
        upper = name.upper()
        full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != "ALL" and full not in defaults.ALL_CAPABILITIES:
            raise InvalidArgument(
                f'invalid capability: "{name}" (in {field}): see capabilities(7) for the names'
            )
        found.append(full)
    return tuple(found)


def validate(config: ContainerConfig, *, windows: bool = False) -> None:
    """Refuse what no kernel would take, before anything is made. Raises InvalidArgument, Docker's words where
    it has some.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", config.id):
        raise InvalidArgument(f'id: "{config.id}": must be 64 hex digits')
    capabilities(config.cap_add, config.cap_drop)
    if config.memory and config.memory < _MIN_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if config.nano_cpus < 0 or (0 < config.nano_cpus < 10_000_000):
        raise InvalidArgument(f"nano_cpus: {config.nano_cpus}: must be at least 10000000 (0.01 CPU)")
    for name in config.sysctls:
        if not (name.startswith(("net.", "fs.mqueue.")) or name in _IPC_SYSCTLS):
            raise InvalidArgument(f'sysctl "{name}" is not in a separate kernel namespace')
    for limit in config.ulimits:
        if limit.name not in _ULIMITS:
            raise InvalidArgument(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            raise InvalidArgument(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
    if not -1000 <= config.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"Invalid value {config.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    seen: set[str] = set()
    for mount in config.mounts:
        _validate_mount(mount, windows)
        target = container_path(mount.target, windows).rstrip("/")
        if target in seen:
            raise InvalidArgument(f"Duplicate mount point: {mount.target}")
        seen.add(target)
    for file in config.files:
        if not container_path(file.target, windows).startswith("/") or "\0" in file.target:
            raise InvalidArgument(f'file target: "{file.target}": must be an absolute path in the container')


def _validate_mount(mount: Mount, windows: bool) -> None:
    target = container_path(mount.target, windows)
    problem = ""
    if not target.startswith("/"):
        problem = f"invalid mount path: '{mount.target}' mount path must be absolute"
    elif target.rstrip("/") == "":
        problem = "invalid specification: destination can't be '/'"
    elif mount.type == "bind" and not mount.source.startswith("/"):
        problem = f"invalid mount path: '{mount.source}' mount path must be absolute"
    elif (
        mount.type == "volume"
        and mount.source
        and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", mount.source)
    ):
        problem = (
            f'"{mount.source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" '
            "are allowed. If you intended to pass a host directory, use absolute path"
        )
    elif mount.type == "tmpfs" and mount.source:
        problem = "tmpfs: source must not be specified"
    elif mount.propagation not in _PROPAGATIONS and mount.propagation:
        problem = f"invalid propagation mode: {mount.propagation}"
    if problem:
        raise InvalidArgument(f'invalid mount config for type "{mount.type}": {problem}')


class HostMount(msgspec.Struct, frozen=True):
    """A host path to be bound into the container: a volume, a bind, or one of the runtime's own files."""

    source: str
    target: str
    read_only: bool = False
    options: tuple[str, ...] = ("rbind", "rprivate")


def runtime_spec(
    config: ContainerConfig,
    resolved: Resolved,
    user: User,
    *,
    rootfs: str,
    cgroup_path: str,
    binds: Sequence[HostMount] = (),
    init: bool = False,
    swap_limit: bool = False,
    windows: bool = False,
) -> dict[str, Any]:
    """The whole `config.json`. `binds` are made after the kernel's file systems, outer targets before inner
    ones.
    """
    kept = capabilities(config.cap_add, config.cap_drop)
    effective = list(kept) if user.uid == 0 else []
    argv = [INIT_TARGET, "--", *resolved.argv] if init else list(resolved.argv)
    env = (
        resolved.env
        if any(e.startswith("HOME=") for e in resolved.env)
        else (*resolved.env, f"HOME={user.home}")
    )
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional)},
        "args": argv,
        "env": list(env),
        "cwd": resolved.cwd,
        "capabilities": {"bounding": list(kept), "effective": effective, "permitted": effective},
        "rlimits": [_rlimit(limit.name, limit.soft, limit.hard) for limit in config.ulimits],
        "noNewPrivileges": config.no_new_privileges,
        "oomScoreAdj": config.oom_score_adj,
    }
    network: list[dict[str, Any]] = []
    if config.netns != "host":
        network.append({"type": "network", **({"path": config.netns} if config.netns else {})})
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": rootfs, "readonly": config.read_only},
        "hostname": resolved.hostname,
        "mounts": [*defaults.base_mounts(), *_mounts(config, binds, windows)],
        "annotations": {"com.overlace.container.name": config.name},
        "linux": {
            "namespaces": [*network, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "cgroupsPath": cgroup_path,
            "resources": _resources(config, swap_limit),
            "sysctl": dict(config.sysctls),
            **_seccomp(config.seccomp, kept),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
            "rootfsPropagation": _root_propagation(config.mounts),
        },
    }


def _seccomp(asked: str, capabilities: tuple[str, ...]) -> dict[str, Any]:
    if asked == "unconfined":
        return {}
    if not asked:
        return {"seccomp": defaults.seccomp(frozenset(capabilities))}
    return {"seccomp": profile_for(asked, capabilities, os.uname().machine, kernel_version())}


def kernel_version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def bind_options(mount: Mount, kernel: tuple[int, int]) -> tuple[str, ...]:
    """The OCI options of a bind or volume mount, `rro` where what lies below is to be read-only too
    (mount_setattr(2), Linux 5.12). Raises InvalidArgument when it must be and cannot."""
    options = ["rbind" if mount.recursive else "bind", mount.propagation or "rprivate"]
    if not mount.read_only:
        return (*options, "rw")
    able = kernel >= (5, 12)
    if mount.recursive_read_only == "must" and not able:
        raise InvalidArgument(
            f"mount {mount.target}: recursive read-only mounts need Linux 5.12, this host has"
            f" {kernel[0]}.{kernel[1]}: leave ReadOnlyForceRecursive out"
        )
    options.append("ro")
    if able and mount.type == "bind" and mount.recursive and mount.recursive_read_only != "no":
        options.append("rro")
    return tuple(options)


def _root_propagation(mounts: Iterable[Mount]) -> str:
    """The root has to pass on what a bind mount shall see, as moby's `WithMounts` arranges."""
    asked = {mount.propagation for mount in mounts if mount.type == "bind"}
    if asked & {"shared", "rshared"}:
        return "shared"
    return "rslave" if asked & {"slave", "rslave"} else "private"


def _rlimit(name: str, soft: int, hard: int) -> dict[str, Any]:
    top = 2**64 - 1
    return {
        "type": f"RLIMIT_{name.upper()}",
        "soft": top if soft < 0 else soft,
        "hard": top if hard < 0 else hard,
    }


def _resources(config: ContainerConfig, swap_limit: bool) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if config.memory:
        memory: dict[str, int] = {"limit": config.memory}
        if swap_limit:
            # the kernel's number is memory and swap together; unless said otherwise as much swap as memory, as Docker
            extra = config.memory if config.swap is None else config.swap
            memory["swap"] = -1 if extra < 0 else config.memory + extra
        resources["memory"] = memory
    if config.swappiness >= 0:
        resources.setdefault("memory", {})["swappiness"] = config.swappiness
    if config.nano_cpus:
        resources["cpu"] = {"quota": config.nano_cpus * _CPU_PERIOD // 1_000_000_000, "period": _CPU_PERIOD}
    if config.pids > 0:
        resources["pids"] = {"limit": config.pids}
    return resources


def _mounts(config: ContainerConfig, binds: Sequence[HostMount], windows: bool) -> list[dict[str, Any]]:
    made = []
    for bind in binds:
        options = [*bind.options]
        if not {"ro", "rw"} & set(options):
            options.append("ro" if bind.read_only else "rw")
        made.append({"destination": bind.target, "type": "bind", "source": bind.source, "options": options})
    for mount in config.mounts:
        if mount.type != "tmpfs":
            continue
        options = [
            "exec" if mount.tmpfs_exec else "noexec",
            "nosuid",
            "nodev",
            f"mode={mount.tmpfs_mode:o}",
            "ro" if mount.read_only else "rw",
        ]
        if mount.tmpfs_size:
            options.append(f"size={mount.tmpfs_size}")
        target = container_path(mount.target, windows)
        made.append({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
    return sorted(made, key=lambda item: str(item["destination"]).rstrip("/").count("/"))
