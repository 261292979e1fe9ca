"""Containers of a Docker Engine on Windows: what they are made of, and what Windows cannot do.

Owns the body of a Windows container, its files on this host and the links to them inside. Must not call the engine, nor
import what needs Linux. Windows mounts folders only: as Docker does for its own swarm, secrets and configs are files of
two folders below C:\\ProgramData\\Docker\\internal, with links to them where they were wished (moby
daemon/container_operations_windows.go; docs.docker.com, "Manage sensitive data with Docker secrets").
"""

from __future__ import annotations

import asyncio
import io
import ntpath
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overlace.model.errors import Internal, InvalidArgument
from overlace.runtime.base import ContainerConfig, FileMount, Interface, Mount, Platform
from overlace.runtime.docker import convert
from overlace.runtime.docker.system import Asked, Made
from overlace.runtime.oci.files import remove_tree
from overlace.runtime.oci.platforms import platform_text, runs_on
from overlace.runtime.oci.records import Places

INTERNAL = "C:\\ProgramData\\Docker\\internal"
SECRETS = "C:\\ProgramData\\Docker\\secrets"
HOSTS = "C:\\Windows\\System32\\drivers\\etc\\hosts"
_LINUX_SECRETS = "/run/secrets/"  # where a service's secrets are when it does not say
_HOSTS_HEAD = "# Written by Overlace.\r\n127.0.0.1\tlocalhost\r\n::1\tlocalhost\r\n"


class Windows:
    """Implements `System` for an engine whose host is `platform`; `spell`: how that engine names a folder of ours."""

    gated = False

    def __init__(self, platform: Platform, spell: Callable[[Path], str] = str) -> None:
        self._platform = platform
        self._spell = spell

    def make(self, asked: Asked) -> Made:
        config, image, places = asked.config, asked.image, asked.places
        if not runs_on(image.platform, self._platform):
            raise InvalidArgument(
                f"image {config.image} is for {platform_text(image.platform)}, this host runs "
                f"{platform_text(self._platform)}: the container operating system does not match the host's"
            )
        check(config)
        argv = command_line(config, image.config)
        try:
            places.data.mkdir(mode=0o700, parents=True)
            folders = {
                self._spell(place): target
                for place, target in _write_files(places.files, config.files).items()
            }
        except OSError as error:
            raise Internal(f"cannot write {error.filename}: {error.strerror}") from error
        body = create_body(config, folders, asked.owner, asked.version)
        return Made(argv, body, archive(config))

    def is_released(self, places: Places) -> bool:
        return (places.data / "released").exists()

    def before_start(self, places: Places) -> None:
        (places.data / "released").unlink(missing_ok=True)

    def sandbox(self, docker_id: str, found: Mapping[str, Any], gates: Sequence[Path]) -> Path:
        """The id under which the host's HNS knows it: no path, but what `NetworkDriver.attach` on Windows takes."""
        return Path(docker_id)

    def release(
        self,
        places: Places,
        argv: Sequence[str],
        found: Mapping[str, Any],
        resolv_conf: str,
        hosts: Sequence[tuple[str, str]],
    ) -> None:
        """It runs already, and knows its names: servers come with the endpoint, hosts came with the container."""
        try:
            (places.data / "released").touch()
        except OSError as error:
            raise Internal(f"cannot write {error.filename}: {error.strerror}") from error

    def signal(self, name: str) -> str:
        """A container of Windows is ended or told to shut down; the engine knows no other signal there."""
        text = name.strip().upper().removeprefix("SIG")
        known = {"9": "KILL", "15": "TERM"}.get(text, text)
        if known not in ("KILL", "TERM"):
            raise InvalidArgument(f"invalid signal: {name}: a Windows container takes SIGKILL and SIGTERM")
        return known

    def interfaces(self, pid: int) -> tuple[Interface, ...] | None:
        """The engine counts Docker's endpoints only, and ours are none of those: what they moved is in HNS."""
        return ()

    async def erase_files(self, places: Places) -> None:
        await asyncio.to_thread(remove_tree, places.files)

    async def remove_places(self, places: Places) -> None:
        await asyncio.to_thread(remove_tree, places.data)


def check(config: ContainerConfig) -> None:
    """Refuse what a Windows container has not. Raises InvalidArgument."""
    wished = {
        "capabilities (--cap-add, --cap-drop)": config.cap_add or config.cap_drop,
        "sysctls (--sysctl)": config.sysctls,
        "ulimits (--ulimit)": config.ulimits,
        "a limit of processes (--limit-pids)": config.pids,
        "supplementary groups (--group)": config.groups,
        "a read-only root file system (--read-only)": config.read_only,
        "an init process (--init)": config.init,
        "an OOM score (--oom-score-adj)": config.oom_score_adj,
        "no-new-privileges": config.no_new_privileges,
        "seccomp profiles": config.seccomp,
        "a limit of swap (--memory-swap)": config.swap is not None,
        "memory swappiness": config.swappiness >= 0,
        "the host's network (--network host)": config.netns == "host",
        "tmpfs mounts": any(m.type == "tmpfs" for m in config.mounts),
        "options of the resolver (--dns-option)": _resolver(config.resolv_conf, "options"),
    }
    for name, value in wished.items():
        if value:
            raise InvalidArgument(
                f"a Windows container has no {name}: leave it out for services that run there"
            )
    for mount in config.mounts:
        _check_mount(mount)


def _check_mount(m: Mount) -> None:
    said = ""
    if m.type == "bind" and (m.propagation not in ("", "rprivate") or not m.recursive):
        said = "bind propagation and non-recursive binds"
    elif m.type == "bind" and m.recursive_read_only != "try":
        said = "a choice for read-only below the source"
    elif m.type == "volume" and m.volume_options:
        said = "volume options"
    if said:
        raise InvalidArgument(f"mount {m.target}: Windows has no {said}: leave it out")


def command_line(config: ContainerConfig, image: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs, as Docker merges it: an entrypoint of one's own also drops the image's Cmd. Raises InvalidArgument."""
    if config.entrypoint is None:
        entrypoint = tuple(image.get("Entrypoint") or ())
        command = config.args if config.args is not None else tuple(image.get("Cmd") or ())
    else:
        entrypoint, command = config.entrypoint, config.args or ()
    argv = (*entrypoint, *command)
    if not argv or not argv[0]:
        raise InvalidArgument("no command specified")
    return argv


def create_body(
    config: ContainerConfig, folders: Mapping[str, str], owner: str, version: tuple[int, int]
) -> dict[str, Any]:
    """The body that makes `config`; `folders` of this host (source -> target) hold its files. Pure."""
    host: dict[str, Any] = {
        "NetworkMode": "none",  # networks are ours: endpoints are attached as it starts
        "Mounts": [
            *(_mount(m, version) for m in config.mounts),
            *({"Type": "bind", "Source": s, "Target": t, "ReadOnly": True} for s, t in folders.items()),
        ],
        "NanoCpus": config.nano_cpus,
        "Memory": config.memory,
        "RestartPolicy": {"Name": "no"},  # starting again is the swarm's
        "LogConfig": convert.log_config(config),
        "DnsSearch": _resolver(config.resolv_conf, "search"),
        "Isolation": config.isolation,
    }
    body = convert.plain_body(config, host, owner, version)
    if config.entrypoint is not None:
        body["Entrypoint"] = list(config.entrypoint)
    if config.args is not None:
        body["Cmd"] = list(config.args)
    return body


def _mount(m: Mount, version: tuple[int, int]) -> dict[str, Any]:
    out: dict[str, Any] = {"Type": m.type, "Source": m.source, "Target": m.target, "ReadOnly": m.read_only}
    if m.type == "bind":
        if m.create_source:
            out["BindOptions"] = {"CreateMountpoint": True}
        return out
    options: dict[str, Any] = {"NoCopy": m.no_copy, "Labels": m.volume_labels}
    if m.subpath:
        convert.need(version, (1, 45), f"mount {m.target}: volume-subpath")
        options["Subpath"] = m.subpath
    return out | {"VolumeOptions": options}


def _resolver(resolv_conf: str, word: str) -> list[str]:
    """The words of a line of resolv.conf(5)."""
    lines = [line.split() for line in resolv_conf.splitlines()]
    return [part for line in lines if line[:1] == [word] for part in line[1:]]


# -- files ---------------------------------------------------------------------------------------------------


def target_of(file: FileMount) -> str:
    """Where a secret or config is wished in the container, as a path of Windows. Raises InvalidArgument for another
    drive than C: links do not lead from one to another."""
    wished = file.target
    if wished.startswith(_LINUX_SECRETS):
        wished = f"{SECRETS}\\{wished.removeprefix(_LINUX_SECRETS)}"
    path = ntpath.normpath(wished)
    drive, rest = ntpath.splitdrive(path)
    if drive.upper() not in ("", "C:") or not rest.startswith("\\"):
        raise InvalidArgument(
            f'file target: "{file.target}": must be an absolute path on drive C: in the container'
        )
    return f"C:{rest}"


def _kind(file: FileMount) -> str:
    return "secrets" if file.secret else "configs"


def _write_files(folder: Path, files: Sequence[FileMount]) -> dict[Path, str]:
    """One file by its number, in one folder for secrets and one for configs; returns the folders to mount. Windows has
    no file system in memory: they are on disk until they are erased, and administrators and the system may read them."""
    mounts: dict[Path, str] = {}
    for number, file in enumerate(files):
        place = folder / _kind(file)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / str(number)).write_bytes(file.data)
        mounts[place] = f"{INTERNAL}\\{_kind(file)}"
    return mounts


def archive(config: ContainerConfig) -> bytes:
    """What is put into the container when it is made, below C:\\: links to its files, and its hosts file. Pure."""
    entries = list(_links(config.files))
    text = _HOSTS_HEAD + "".join(f"{address}\t{name}\r\n" for name, address in config.hosts)
    if not entries and not config.hosts:
        return b""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            tar.addfile(entry)
        if config.hosts:
            member = tarfile.TarInfo(_member(HOSTS))
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def _links(files: Iterable[FileMount]) -> Iterable[tarfile.TarInfo]:
    seen: set[str] = set()
    for number, file in enumerate(files):
        target = target_of(file)
        if target.lower() in seen:
            raise InvalidArgument(f"Duplicate mount point: {file.target}")
        seen.add(target.lower())
        link = tarfile.TarInfo(_member(target))
        link.type = tarfile.SYMTYPE
        source = f"{INTERNAL}\\{_kind(file)}\\{number}"
        link.linkname = ntpath.relpath(source, ntpath.dirname(target)).replace("\\", "/")
        yield link


def _member(path: str) -> str:
    return path.removeprefix("C:\\").replace("\\", "/")
