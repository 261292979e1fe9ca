"""Making and unmaking what a container needs on disk and in memory before it can start.

Owns folders, the files below /etc, secrets, configs and volumes of a container. Must not run containers.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import secrets
from collections.abc import Iterable
from pathlib import Path

from overlace.model.errors import Internal, InvalidArgument
from overlace.model.volumes import ANONYMOUS_LABEL
from overlace.runtime.base import ContainerConfig, FileMount, HostFiles, Mount, Volume
from overlace.runtime.oci.files import read_scoped, remove_tree, scoped_path
from overlace.runtime.oci.mounts import mount_overlay, mount_tmpfs, mounted_below, unmount
from overlace.runtime.oci.records import Places
from overlace.runtime.oci.spec import (
    INIT_TARGET,
    HostMount,
    Resolved,
    bind_options,
    container_path,
    kernel_version,
)
from overlace.runtime.oci.users import WINDOWS_ACCOUNTS, User, find_user
from overlace.runtime.oci.volumes import VolumeStore

_SECRETS_TARGET = "/run/secrets"
_INITS = (
    "/usr/bin/docker-init",
    "/usr/bin/tini-static",
    "/usr/libexec/podman/catatonit",
    "/usr/bin/catatonit",
    "/usr/bin/tini",
)
_FILE_OPTIONS = ("bind", "rprivate", "nosuid", "nodev")
_LOOPBACK = (
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)


def user_of(resolved: Resolved, config: ContainerConfig, rootfs: Path, *, windows: bool) -> User:
    """The container's user, looked up in the image. Raises InvalidArgument in Docker's words."""
    name = resolved.user
    if windows and name.lower() in WINDOWS_ACCOUNTS:
        name = ""
    return find_user(
        name, read_scoped(rootfs, "/etc/passwd"), read_scoped(rootfs, "/etc/group"), config.groups
    )


def is_static(program: Path) -> bool:
    """Whether an ELF program needs no loader (and so runs in any image): its head names no ld.so."""
    with program.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"\x7fELF") and b"/ld-" not in head


def init_program() -> str:
    """A tiny static init on this host. Raises InvalidArgument when there is none."""
    for path in _INITS:
        if os.access(path, os.X_OK) and is_static(Path(path)):
            return path
    raise InvalidArgument(
        "init: no init program on this host: install tini (Debian: apt install tini) or leave init off"
    )


def make_folders(places: Places, image_root: Path) -> None:
    """The container's folders; the writable layer's top looks like the image's. Raises Internal."""
    try:
        for folder in (places.data.parent, places.bundle.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        places.data.mkdir(mode=0o700)
        places.bundle.mkdir(mode=0o700)
        for folder in (places.upper, places.work, places.rootfs, places.etc):
            folder.mkdir()
        top = image_root.stat()
        places.upper.chmod(top.st_mode & 0o7777)
        os.chown(places.upper, top.st_uid, top.st_gid)
    except OSError as error:
        raise Internal(f"cannot create container folder {error.filename}: {error.strerror}") from error


def etc_binds(
    places: Places, config: ContainerConfig, resolved: Resolved, taken: frozenset[str]
) -> list[HostMount]:
    """Write hosts, hostname and resolv.conf; bind them unless a mount of its own has that place."""
    content = {"hosts": hosts_text(config, resolved, ()), "hostname": f"{resolved.hostname}\n"}
    if config.resolv_conf:
        content["resolv.conf"] = config.resolv_conf
    binds = []
    for name, text in content.items():
        target = f"/etc/{name}"
        if target not in taken:
            _write(places.etc / name, text.encode(), 0o644)
            binds.append(HostMount(str(places.etc / name), target, config.read_only, ("bind", "rprivate")))
    return binds


def host_files(places: Places, binds: Iterable[HostMount], log_driver: str) -> HostFiles:
    """Where the container's own files are on this host, as `docker inspect` shows them. Pure."""
    made = {os.path.basename(bind.source): bind.source for bind in binds}
    return HostFiles(
        hosts=made.get("hosts", ""),
        hostname=made.get("hostname", ""),
        resolv_conf=made.get("resolv.conf", ""),
        log="" if log_driver == "none" else str(places.log),
    )


def hosts_text(config: ContainerConfig, resolved: Resolved, addresses: Iterable[str]) -> str:
    """/etc/hosts: loopback, the extra hosts, and the container's own name at its addresses unless an extra
    host has it.
    """
    lines = [f"{address}\t{name}\n" for name, address in config.hosts]
    if resolved.hostname not in {name for name, _ in config.hosts}:
        lines += [f"{address}\t{resolved.hostname}\n" for address in addresses]
    return _LOOPBACK + "".join(lines)


def write_hosts(places: Places, config: ContainerConfig, resolved: Resolved, pid: int) -> None:
    """Complete the hosts file of a created container with the addresses its network namespace has. Same
    inode: it is bound.
    """
    path = places.etc / "hosts"
    if path.exists():
        try:
            table = Path(f"/proc/{pid}/net/fib_trie").read_text()
        except OSError:
            table = ""
        path.write_text(hosts_text(config, resolved, local_addresses(table)))


def local_addresses(fib_trie: str) -> tuple[str, ...]:
    """The IPv4 addresses a namespace owns, loopback left out, from /proc/<pid>/net/fib_trie. Pure."""
    found: dict[str, None] = {}
    address = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if words[:1] in (["|--"], ["+--"]):
            address = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and not address.startswith("127."):
            found[address] = None
    return tuple(found)


def file_binds(places: Places, files: Iterable[FileMount], *, windows: bool) -> tuple[list[HostMount], bool]:
    """Place secrets (tmpfs only) and configs; returns their binds and whether there are secrets. Raises
    Internal.
    """
    binds: list[HostMount] = []
    has_secrets = False
    folder_bound = False
    for number, file in enumerate(files):
        target = posixpath.normpath(container_path(file.target, windows))
        if not file.secret:
            source = places.files / str(number)
            places.files.mkdir(mode=0o700, exist_ok=True)
        else:
            if not has_secrets:
                places.secrets.mkdir(exist_ok=True)
                mount_tmpfs(places.secrets)
                has_secrets = True
            below = posixpath.relpath(target, _SECRETS_TARGET)
            if below.startswith(".."):
                source = places.secrets / "elsewhere" / str(number)
            else:
                source = places.secrets / "run" / below
            _make_parent(source)
            if not below.startswith(".."):
                if not folder_bound:
                    options = (*_FILE_OPTIONS, "noexec")
                    binds.append(HostMount(str(places.secrets / "run"), _SECRETS_TARGET, True, options))
                    folder_bound = True
                _write(source, file.data, file.mode, file.uid, file.gid)
                continue
        _write(source, file.data, file.mode, file.uid, file.gid)
        binds.append(HostMount(str(source), target, True, _FILE_OPTIONS))
    return binds, has_secrets


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # one secret's target is below another's
        raise InvalidArgument(f"cannot place a secret at {path.name}: {error.strerror}") from error


def _write(path: Path, data: bytes, mode: int, uid: int = 0, gid: int = 0) -> None:
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
    except OSError as error:
        raise Internal(f"cannot write {path}: {error.strerror}") from error


async def mount_binds(
    config: ContainerConfig, resolved: Resolved, store: VolumeStore, image_root: Path, *, windows: bool
) -> tuple[list[HostMount], list[Volume], list[str]]:
    """Binds for the bind and volume mounts, the volumes among them, and the names of those that are anonymous.

    Raises InvalidArgument for a bind source that is not there (Docker's words), Internal.
    """
    binds: list[HostMount] = []
    volumes: list[Volume] = []
    anonymous: list[str] = []
    wanted = [*config.mounts, *(Mount("volume", target) for target in resolved.volumes)]
    try:
        for mount in wanted:
            target = container_path(mount.target, windows)
            if mount.type != "tmpfs":
                options = bind_options(mount, kernel_version())
            if mount.type == "bind":
                check_source(mount)
                binds.append(HostMount(mount.source, target, mount.read_only, options))
            elif mount.type == "volume":
                name = mount.source
                if not name:
                    name = secrets.token_hex(32)
                    anonymous.append(name)
                path = await store.ensure(
                    name,
                    mount.volume_labels if mount.source else {ANONYMOUS_LABEL: "", **mount.volume_labels},
                    mount.volume_options,
                    image_root=image_root,
                    target=target,
                    fill=not (mount.no_copy or mount.subpath),
                )
                volumes.append(Volume(name, mount.target, str(path), mount.read_only))
                source = str(_within(path, mount.subpath, name))
                binds.append(HostMount(source, target, mount.read_only, options))
    except BaseException:
        for name in anonymous:
            await store.remove(name)
        raise
    return binds, volumes, anonymous


def _within(volume: Path, subpath: str, name: str) -> Path:
    """What `subpath` names in a volume, never outside of it. Raises InvalidArgument in Docker's words."""
    found = scoped_path(volume, subpath) if subpath else volume
    if not found.exists():
        raise InvalidArgument(
            f"cannot access path {subpath} of volume {name}: no such file or directory; make it before it is mounted"
        )
    return found


def check_source(mount: Mount) -> None:
    """Have the source of a bind mount. Raises InvalidArgument in Docker's words when there is none."""
    if os.path.exists(mount.source):
        return
    if not mount.create_source:
        raise InvalidArgument(
            f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
        )
    try:
        os.makedirs(mount.source, 0o755, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(
            f"error while creating mount source path '{mount.source}': {error.strerror}: {error.filename}"
        ) from error


def init_bind() -> HostMount:
    """The init program at its place in the container."""
    return HostMount(init_program(), INIT_TARGET, True, ("bind", "rprivate"))


def mount_root(places: Places, image_root: Path) -> None:
    """The container's root file system, fresh at every start."""
    unmount(places.rootfs)
    mount_overlay(image_root, places.upper, places.work, places.rootfs)


async def erase_files(places: Places) -> None:
    """Secrets (their tmpfs) and configs of a container that has ended."""
    unmount(places.secrets)
    for folder in (places.secrets, places.files):
        await asyncio.to_thread(remove_tree, folder)


async def remove_places(places: Places) -> None:
    """Everything `make_folders` and later steps made, mounts first. The record goes first of all, so that a
    crash in the
    middle leaves something the next open recognises as half a container."""
    places.state.unlink(missing_ok=True)
    for point in list(mounted_below(places.bundle)):
        unmount(point)
    await asyncio.to_thread(remove_tree, places.bundle)
    await asyncio.to_thread(remove_tree, places.data)
