"""Between our words for containers and images and Docker Engine's.

Pure: a container's config to the body of `POST /containers/create`, and what inspection answers back to ours. Must not
call the engine. Fields: Docker Engine API, ContainerConfig, HostConfig, ContainerInspect, ImageInspect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from overlace.model.errors import InvalidArgument
from overlace.runtime.base import (
    Container,
    ContainerConfig,
    ContainerStatus,
    Healthcheck,
    HealthLog,
    HealthStatus,
    HostFiles,
    Image,
    Interface,
    Mount,
    Platform,
    StoredVolume,
    Usage,
    Volume,
)
from overlace.runtime.oci.spec import HostMount

INSIDE = "/.overlace"  # where a container on Linux sees its gate; hold.c knows it too
HOLD = f"{INSIDE}/hold"
ID_LABEL = "overlace.container"  # our id of a container, on Docker's
OWNER_LABEL = "overlace.data-root"  # of the daemon it belongs to: one engine may serve several
_START_INTERVAL_API = (1, 44)
_STATUS: dict[str, ContainerStatus] = {
    "created": "created",
    "running": "running",
    "paused": "running",
    "restarting": "running",
    "exited": "exited",
    "removing": "dead",
    "dead": "dead",
}


def create_body(
    config: ContainerConfig,
    argv: Sequence[str],
    gate: str,
    files: Iterable[HostMount],
    owner: str,
    version: tuple[int, int],
) -> dict[str, Any]:
    """The body that makes `config` for the daemon with data root `owner`, held at the gate in folder `gate`.

    Raises InvalidArgument for what an engine that speaks API `version` cannot do.
    """
    host: dict[str, Any] = {
        "NetworkMode": "host"
        if config.netns == "host"
        else "none",  # networks are ours: an endpoint is attached to the namespace Docker makes
        "Mounts": [
            {"Type": "bind", "Source": gate, "Target": INSIDE, "ReadOnly": True},
            *(_mount(m, version) for m in config.mounts),
            *({"Type": "bind", "Source": f.source, "Target": f.target, "ReadOnly": True} for f in files),
        ],
        "GroupAdd": list(config.groups),
        "ReadonlyRootfs": config.read_only,
        "Init": config.init,
        "NanoCpus": config.nano_cpus,
        "Memory": config.memory,
        "PidsLimit": config.pids or None,
        "CapAdd": list(config.cap_add),
        "CapDrop": list(config.cap_drop),
        "Sysctls": config.sysctls,
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in config.ulimits],
        "OomScoreAdj": config.oom_score_adj,
        "MemorySwap": _memory_swap(config),
        "MemorySwappiness": config.swappiness if config.swappiness >= 0 else None,
        "SecurityOpt": [
            *(["no-new-privileges"] if config.no_new_privileges else []),
            *([f"seccomp={config.seccomp}"] if config.seccomp else []),
        ],
        "ExtraHosts": [f"{name}:{address}" for name, address in config.hosts],
        "RestartPolicy": {"Name": "no"},  # starting again is the swarm's
        "LogConfig": log_config(config),
    }
    body = plain_body(config, host, owner, version)
    return {**body, "Entrypoint": [HOLD], "Cmd": list(argv), "StdinOnce": config.stdin_once}


def plain_body(
    config: ContainerConfig, host: Mapping[str, Any], owner: str, version: tuple[int, int]
) -> dict[str, Any]:
    """What a body for Linux and one for Windows have in common, around the HostConfig `host`; no command."""
    body: dict[str, Any] = {
        "Image": config.image,
        "Env": list(config.env),
        "Hostname": config.hostname,
        "Labels": {**config.labels, ID_LABEL: config.id, OWNER_LABEL: owner},
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StopTimeout": seconds(config.stop_grace),
        "HostConfig": host,
    }
    if config.workdir is not None:
        body["WorkingDir"] = config.workdir
    if config.user is not None:
        body["User"] = config.user
    if config.stop_signal is not None:
        body["StopSignal"] = config.stop_signal
    if config.healthcheck is not None:
        body["Healthcheck"] = healthcheck(config.healthcheck, version)
    return body


def seconds(duration: int) -> int:
    """Nanoseconds as whole seconds, upwards: the engine knows no fractions here."""
    return math.ceil(duration / 1_000_000_000)


def _memory_swap(config: ContainerConfig) -> int:
    """Docker counts memory and swap together; 0 leaves it to the engine, which takes as much again as memory."""
    if config.swap is None:
        return 0
    return -1 if config.swap < 0 else config.memory + config.swap


def _mount(m: Mount, version: tuple[int, int]) -> dict[str, Any]:
    out: dict[str, Any] = {"Type": m.type, "Target": m.target, "ReadOnly": m.read_only}
    if m.type == "bind":
        options: dict[str, Any] = {"Propagation": m.propagation, "NonRecursive": not m.recursive}
        if m.recursive_read_only != "try":
            need(version, (1, 44), f"mount {m.target}: a choice for read-only below the source")
            key = "ReadOnlyForceRecursive" if m.recursive_read_only == "must" else "ReadOnlyNonRecursive"
            options[key] = True
        return out | {"Source": m.source, "BindOptions": options}
    if m.type == "volume":
        options = {"NoCopy": m.no_copy, "Labels": m.volume_labels}
        if m.volume_options:
            options["DriverConfig"] = {"Name": "local", "Options": m.volume_options}
        if m.subpath:
            need(version, (1, 45), f"mount {m.target}: volume-subpath")
            options["Subpath"] = m.subpath
        return out | {"Source": m.source, "VolumeOptions": options}
    options = {"SizeBytes": m.tmpfs_size, "Mode": m.tmpfs_mode}
    if m.tmpfs_exec:
        need(version, (1, 46), f"mount {m.target}: tmpfs option exec")
        options["Options"] = [["exec"]]
    return out | {"TmpfsOptions": options}


def need(version: tuple[int, int], least: tuple[int, int], what: str) -> None:
    """Raises InvalidArgument for an engine that is too old."""
    if version < least:
        raise InvalidArgument(
            f"{what}: this host's Docker Engine speaks API {version[0]}.{version[1]} and cannot do it; "
            f"it needs API {least[0]}.{least[1]} or later"
        )


def log_config(config: ContainerConfig) -> dict[str, Any]:
    """HostConfig.LogConfig."""
    if config.log_driver == "none":
        return {"Type": "none"}
    options = {}
    if config.log_max_size:
        options["max-size"] = str(config.log_max_size)
    if config.log_max_files:
        options["max-file"] = str(config.log_max_files)
    return {"Type": config.log_driver, "Config": options}


def healthcheck(check: Healthcheck, version: tuple[int, int]) -> dict[str, Any]:
    """The healthcheck of a body. Raises InvalidArgument."""
    out = {
        "Test": list(check.test),
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "Retries": check.retries,
    }
    if version >= _START_INTERVAL_API:
        out["StartInterval"] = check.start_interval
    elif check.start_interval not in (0, Healthcheck().start_interval):
        need(version, _START_INTERVAL_API, f"healthcheck start interval {check.start_interval / 1e9:g}s")
    return out


def timestamp(text: str | None) -> int:
    """RFC 3339 as ns since the epoch; Docker's zero time and absent ones are 0."""
    if not text or text.startswith("0001-01-01"):
        return 0
    whole, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :] if rest else ""
    if not rest:  # no fraction: the zone is at the end of the first part
        whole, zone = (whole[:-1], "Z") if whole.endswith("Z") else (whole[:-6], whole[-6:])
    moment = datetime.fromisoformat(whole + ("+00:00" if zone in ("", "Z") else zone))
    return int(moment.timestamp()) * 1_000_000_000 + int((digits + "0" * 9)[:9])


def container_of(
    found: dict[str, Any], config: ContainerConfig, argv: tuple[str, ...], held: bool
) -> Container:
    """A container as the engine's inspection `found` it; one that waits at its gate counts as created."""
    state = found["State"]
    status = _STATUS.get(state["Status"], "dead")
    waiting = held and status == "running"
    health = state.get("Health") or {}
    return Container(
        config=config,
        status="created" if waiting else status,
        image_id=found["Image"],
        created_at=timestamp(found.get("Created")),
        pid=0 if waiting else state.get("Pid", 0),
        exit_code=state.get("ExitCode", 0),
        error=state.get("Error", ""),
        oom_killed=state.get("OOMKilled", False),
        started_at=0 if waiting else timestamp(state.get("StartedAt")),
        finished_at=timestamp(state.get("FinishedAt")),
        health=None if waiting else _health(health.get("Status", "")),
        failing_streak=health.get("FailingStreak", 0),
        health_log=tuple(
            HealthLog(timestamp(e["Start"]), timestamp(e["End"]), e["ExitCode"], e["Output"])
            for e in health.get("Log") or ()
        ),
        argv=argv,
        volumes=tuple(
            Volume(m["Name"], m["Destination"], m["Source"], not m.get("RW", True))
            for m in found.get("Mounts") or ()
            if m["Type"] == "volume"
        ),
        host_files=HostFiles(
            hosts=found.get("HostsPath", ""),
            hostname=found.get("HostnamePath", ""),
            resolv_conf=found.get("ResolvConfPath", ""),
            log=found.get("LogPath", ""),
        ),
    )


def _health(word: str) -> HealthStatus | None:
    return word if word in ("starting", "healthy", "unhealthy") else None  # type: ignore[return-value]  # checked


def image_of(found: dict[str, Any]) -> Image:
    """`GET /images/NAME/json` as an image."""
    return Image(
        id=found["Id"],
        tags=tuple(found.get("RepoTags") or ()),
        digests=tuple(found.get("RepoDigests") or ()),
        platform=Platform(
            os=found.get("Os", ""),
            architecture=found.get("Architecture", ""),
            os_version=found.get("OsVersion", ""),
            variant=found.get("Variant", ""),
        ),
        created=found.get("Created") or "",
        size=found.get("Size", 0),
        config=found.get("Config") or {},
        layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
    )


def windows_usage_of(found: dict[str, Any], interfaces: tuple[Interface, ...], system: int) -> Usage:
    """`GET /containers/ID/stats` of an engine on Windows: times in 100 ns, memory as its private working set.
    `system`: what all the host's processors had of time, in ns; that engine does not say."""
    used = (found.get("cpu_stats") or {}).get("cpu_usage") or {}
    moved = found.get("storage_stats") or {}
    return Usage(
        cpu_total=used.get("total_usage", 0) * 100,
        cpu_user=used.get("usage_in_usermode", 0) * 100,
        cpu_kernel=used.get("usage_in_kernelmode", 0) * 100,
        system=system,
        memory=(found.get("memory_stats") or {}).get("privateworkingset", 0),
        io=(
            (0, 0, "read", moved.get("read_size_bytes", 0)),
            (0, 0, "write", moved.get("write_size_bytes", 0)),
        ),
        interfaces=interfaces,
    )


def usage_of(found: dict[str, Any], interfaces: tuple[Interface, ...]) -> Usage:
    """`GET /containers/ID/stats`; the engine counts no interfaces of ours, so they come from the container itself."""
    cpu, memory, pids = (
        found.get("cpu_stats") or {},
        found.get("memory_stats") or {},
        found.get("pids_stats") or {},
    )
    used = cpu.get("cpu_usage") or {}
    moved = (found.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return Usage(
        cpu_total=used.get("total_usage", 0),
        cpu_user=used.get("usage_in_usermode", 0),
        cpu_kernel=used.get("usage_in_kernelmode", 0),
        system=cpu.get("system_cpu_usage", 0),
        memory=memory.get("usage", 0),
        memory_limit=memory.get("limit", 0),
        memory_stats=memory.get("stats") or {},
        pids=pids.get("current", 0),
        pids_limit=pids.get("limit") or 0,
        io=tuple(
            (m["major"], m["minor"], m["op"].lower(), m["value"])
            for m in moved
            if m["op"] in ("read", "write", "Read", "Write")
        ),
        interfaces=interfaces,
    )


def volume_of(found: dict[str, Any]) -> StoredVolume:
    """One of `GET /volumes`."""
    return StoredVolume(
        found["Name"],
        found["Mountpoint"],
        timestamp(found.get("CreatedAt")),
        found.get("Labels") or {},
        found.get("Options") or {},
    )
