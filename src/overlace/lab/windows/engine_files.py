"""`docker cp` into a container that does not run: a tar archive put into its file system, with Windows' paths.

Owns the mapping of paths and links, and that nothing lands outside the container. The hosts file of Windows is where the
payload's own has to go; its lines are returned, to be written when the container starts.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

from overlace.model.errors import InvalidArgument, NotFound, Unimplemented
from overlace.runtime.oci import prepare
from overlace.runtime.oci.files import scoped_path
from overlace.runtime.oci.mounts import unmount
from overlace.runtime.oci.records import Places
from overlace.runtime.oci.spec import container_path

HOSTS = "/windows/system32/drivers/etc/hosts"
Hosts = tuple[tuple[str, str], ...]  # (name, address)


def put_archive(places: Places, image_root: Path, folder: str, archive: bytes) -> Hosts:
    """Extract below `folder` (`C:\\…`). Raises InvalidArgument for what is no tar, NotFound for a folder that is not
    there, Unimplemented for members other than folders, files and links."""
    below = container_path(folder, windows=True)
    prepare.mount_root(places, image_root)
    try:
        if not scoped_path(places.rootfs, below).is_dir():
            raise NotFound(f"Could not find the file {folder} in container {places.data.name}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            hosts: Hosts = ()
            for member in tar:
                target = os.path.join(below, member.name.replace("\\", "/"))
                if os.path.normpath(target).lower() == HOSTS:
                    text = tar.extractfile(member)
                    hosts = parse_hosts(text.read().decode() if text else "")
                _put(tar, member, places.rootfs, os.path.normpath(target))
        return hosts
    except tarfile.TarError as error:
        raise InvalidArgument(f"invalid archive: {error}") from None
    finally:
        unmount(places.rootfs)


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, inside: str) -> None:
    place = scoped_path(root, os.path.dirname(inside)) / os.path.basename(inside)
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        place.mkdir(exist_ok=True)
    elif member.issym() or member.isfile():
        with contextlib.suppress(FileNotFoundError):
            place.unlink()
        if member.issym():
            place.symlink_to(container_path(member.linkname, windows=True))
            return
        source = tar.extractfile(member)
        place.write_bytes(source.read() if source else b"")
        place.chmod(member.mode & 0o7777)
    else:
        raise Unimplemented(f"{member.name}: only folders, files and symbolic links are put into containers")


def parse_hosts(text: str) -> Hosts:
    """hosts(5) as (name, address) pairs. Pure."""
    found = []
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        found += [(name, address) for name in names]
    return tuple(found)
