"""What Docker on Windows takes and refuses when a container is created, and the Linux container that plays it.

Pure, but for looking whether a bind's source is there. Words and statuses are those of dockerd on Windows where they are
public (moby: runconfig/hostconfig_windows.go, daemon/daemon_windows.go verifyPlatformContainerResources,
volume/mounts/windows_parser.go). What dockerd would take and this stand-in cannot play is refused as such, with 501.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from overlace.agent.container import healthcheck_of
from overlace.model.errors import InvalidArgument, NotFound, Unimplemented
from overlace.model.specs import Doc, Healthcheck
from overlace.runtime import base

_DRIVE = re.compile(r"(?:\\\\\?\\)?([A-Za-z]):(?:[\\/](.*))?", re.DOTALL)
_TARGET = re.compile(r'(?:\\\\\?\\)?[a-z]:(?:[\\/][^\\/:*?"<>\r\n]+)*[\\/]?', re.I)
_PIPE = re.compile(r'[/\\]{2}\.[/\\]pipe[/\\][^:*?"<>|\r\n]+', re.I)
_VOLUME = re.compile(r'[^\\/:*?"<>|\r\n]+')
_RESERVED = re.compile(r"con|prn|nul|aux|com[1-9]|lpt[1-9]", re.I)
_ISOLATIONS = ("", "default", "process", "hyperv")
# of HostConfig, each refused as `invalid option: Windows does not support NAME`
_UNSUPPORTED = (
    "BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps", "BlkioDeviceWriteIOps", "BlkioWeight",
    "BlkioWeightDevice", "CgroupParent", "CpuPeriod", "CpusetCpus", "CpusetMems", "KernelMemory",
    "MemoryReservation", "MemorySwap", "MemorySwappiness", "OomKillDisable", "PidsLimit", "Ulimits",
)  # fmt: skip
# dockerd on Windows drops these without a word; refused here, so that a test meets a client that counts on them
_DROPPED = (
    "CapAdd",
    "CapDrop",
    "GroupAdd",
    "Sysctls",
    "OomScoreAdj",
    "Init",
    "ExtraHosts",
    "Devices",
    "ShmSize",
)


class Create(Doc, frozen=True):
    """Body of POST /containers/create; HostConfig as sent, so that inspection can give it back."""

    image: str = ""
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    env: list[str] = msgspec.field(default_factory=list)
    hostname: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    tty: bool = msgspec.field(default=False, name="Tty")
    open_stdin: bool = False
    stop_timeout: int | None = None
    stop_signal: str = ""
    working_dir: str = ""
    user: str = ""
    healthcheck: Healthcheck | None = None
    host_config: dict[str, Any] = msgspec.field(default_factory=dict)


class Drives:
    """Where the drives of the emulated host are on this machine."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = {letter.lower(): path for letter, path in places.items()}

    def find(self, path: str) -> Path:
        """Raises InvalidArgument in Docker's words for what is no absolute path of Windows, NotFound for a drive that
        this host has not. Names are looked up in any case, as NTFS does."""
        match = _DRIVE.fullmatch(path)
        if match is None:
            raise InvalidArgument(f"invalid mount path: '{path}' mount path must be absolute")
        place = self._places.get(match[1].lower())
        if place is None:
            raise NotFound(f"{path}: this host has no drive {match[1].upper()}:")
        for part in re.split(r"[\\/]+", match[2] or ""):
            if part:
                place = _any_case(place, part)
        return place


def _any_case(folder: Path, name: str) -> Path:
    exact = folder / name
    if not os.path.lexists(exact):
        try:
            return next((folder / n for n in os.listdir(folder) if n.lower() == name.lower()), exact)
        except OSError:
            return exact  # no folder that can be read
    return exact


def check_host_config(host: Mapping[str, Any], processors: int, hyperv: bool = False) -> None:
    """Raises InvalidArgument in dockerd's words, Unimplemented for what the stand-in does not play."""
    isolation = str(host.get("Isolation") or "").lower()
    if isolation not in _ISOLATIONS:
        raise InvalidArgument(
            f"invalid isolation ({host['Isolation']}): Windows supports 'default', 'process', or 'hyperv'"
        )
    if host.get("Privileged"):
        raise InvalidArgument("invalid option: privileged mode is not supported for Windows containers")
    if host.get("ReadonlyRootfs"):
        raise InvalidArgument("invalid option: read-only mode is not supported for Windows containers")
    if isolation == "hyperv" and not hyperv:
        raise InvalidArgument(
            "No hypervisor is present on this system: Hyper-V isolation is not available (0xc0351000)"
        )
    for name in (*_UNSUPPORTED, *_DROPPED):
        if host.get(name):
            raise InvalidArgument(f"invalid option: Windows does not support {name}")
    if host.get("Tmpfs"):
        raise InvalidArgument("windows does not support tmpfs")
    for option in host.get("SecurityOpt") or ():
        raise InvalidArgument(f"invalid --security-opt: {option!r}: Windows takes credentialspec= only")
    if not 0 <= int(host.get("NanoCpus") or 0) <= processors * 1_000_000_000:
        raise InvalidArgument(
            f"range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs available"
        )
    network = str(host.get("NetworkMode") or "default")
    if network == "host":
        raise NotFound("network host not found")
    if network != "none":
        raise Unimplemented(f"NetworkMode {network}: this stand-in has no network of Docker's: use none")
    if (host.get("RestartPolicy") or {}).get("Name") not in (None, "", "no"):
        raise Unimplemented("RestartPolicy: this stand-in starts nothing again by itself")
    for name in ("Binds", "VolumesFrom", "Links", "AutoRemove", "PortBindings"):
        if host.get(name):
            raise Unimplemented(f"{name}: not played by this stand-in")


def plan_mounts(mounts: list[dict[str, Any]], drives: Drives) -> Iterator[base.Mount]:
    """Raises InvalidArgument in dockerd's words."""
    for mount in mounts:
        kind, target, source = (str(mount.get(k) or "") for k in ("Type", "Target", "Source"))

        def bad(problem: str, kind: str = kind) -> InvalidArgument:
            return InvalidArgument(f'invalid mount config for type "{kind}": {problem}')

        if not target:
            raise bad("field Target must not be empty")
        if target.lower().replace("/", "\\") in ("c:", "c:\\"):
            raise bad(f"destination path cannot be `c:` or `c:\\`: {target}")
        if not (_TARGET.fullmatch(target) or _PIPE.fullmatch(target)):
            raise bad(f"invalid mount path: '{target}'")
        read_only = bool(mount.get("ReadOnly"))
        volume, bind = mount.get("VolumeOptions") or {}, mount.get("BindOptions") or {}
        if kind == "bind":
            if not source:
                raise bad("field Source must not be empty")
            if bind.get("Propagation"):
                raise bad(f"invalid propagation mode: {bind['Propagation']}")
            if volume:
                raise bad("field VolumeOptions must not be specified")
            if not _TARGET.fullmatch(source):
                raise bad(f"invalid mount path: '{source}' mount path must be absolute")
            place = drives.find(source)
            if not place.exists():
                raise bad(f"bind source path does not exist: {source}")
            if not place.is_dir():
                raise bad("source path must be a directory")
            yield base.Mount("bind", target, str(place), read_only)
        elif kind == "volume":
            if source and not _VOLUME.fullmatch(source):
                raise bad("invalid volume name")
            if _RESERVED.fullmatch(source):
                raise bad(f'volume name "{source}" cannot be a reserved word for Windows filenames')
            if not source and read_only:
                raise bad("must not set ReadOnly mode when using anonymous volumes")
            if bind:
                raise bad("field BindOptions must not be specified")
            driver = volume.get("DriverConfig") or {}
            if driver.get("Options"):
                raise InvalidArgument("options are not supported on this platform")
            yield base.Mount(
                "volume", target, source, read_only, no_copy=True, subpath=str(volume.get("Subpath") or ""),
                volume_labels=dict(volume.get("Labels") or {}),
            )  # fmt: skip
        elif kind == "npipe":
            raise Unimplemented(f"mount {target}: named pipes are not played by this stand-in")
        else:
            raise bad("mount type unknown")


def plan_config(
    asked: Create, container_id: str, name: str, namespace: Path, drives: Drives, processors: int
) -> base.ContainerConfig:
    """The Linux container that plays what was asked for, in the network namespace to be at `namespace`."""
    host = asked.host_config
    check_host_config(host, processors)
    log = host.get("LogConfig") or {}
    kind, options = str(log.get("Type") or "json-file"), log.get("Config") or {}
    if kind not in ("json-file", "local", "none"):
        raise InvalidArgument(f"logger: no log driver named '{kind}' is registered")
    health = asked.healthcheck
    return base.ContainerConfig(
        id=container_id,
        name=name,
        image=asked.image,
        netns=str(namespace),
        entrypoint=_words(asked.entrypoint),
        args=_words(asked.cmd),
        env=tuple(asked.env),
        workdir=asked.working_dir or None,
        user=asked.user or None,
        hostname=asked.hostname,
        labels=asked.labels,
        mounts=tuple(plan_mounts(host.get("Mounts") or [], drives)),
        resolv_conf="# no network yet\n",
        tty=asked.tty,
        open_stdin=asked.open_stdin,
        stop_signal=asked.stop_signal or None,
        stop_grace=(10 if asked.stop_timeout is None else asked.stop_timeout) * 1_000_000_000,
        healthcheck=None if health is None else healthcheck_of(health),
        nano_cpus=int(host.get("NanoCpus") or 0),
        memory=int(host.get("Memory") or 0),
        log_driver=kind,  # type: ignore[arg-type]  # one of the three
        log_max_size=int(options.get("max-size") or 0),
        log_max_files=int(options.get("max-file") or 0),
    )


def _words(given: list[str] | str | None) -> tuple[str, ...] | None:
    if not given:
        return None
    return (given,) if isinstance(given, str) else tuple(given)
