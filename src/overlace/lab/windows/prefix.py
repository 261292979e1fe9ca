"""A lab host's own C: drive: a Wine prefix that shares the programs of the prepared one and has files of its own.

Owns what is shared, what is copied, and which Windows the host says it is. Must not start anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from overlace.lab.windows.wine import home
from overlace.model.errors import Unavailable

SERVER = "Windows Server 2022 Datacenter"
_KEY = r"[Software\\Microsoft\\Windows NT\\CurrentVersion]"
_SHARED = ("windows", "Program Files", "Program Files (x86)")  # read only, or as good as
_COPIED = ("system.reg", "user.reg", "userdef.reg", ".update-timestamp")


def version_values(build: str) -> dict[str, str]:
    """What the registry says of a Windows of `build` (10.0.20348.2527), as a .reg file writes it. Pure."""
    major, minor, number, update = (int(part) for part in build.split("."))
    return {
        "CurrentBuild": f'"{number}"',
        "CurrentBuildNumber": f'"{number}"',
        "CurrentMajorVersionNumber": f"dword:{major:08x}",
        "CurrentMinorVersionNumber": f"dword:{minor:08x}",
        "CurrentVersion": f'"{major}.{minor}"',  # Wine tells the version by this; Windows has 6.3 there since 8.1
        "CSDVersion": '""',
        "InstallationType": '"Server"',
        "ProductName": f'"{SERVER}"',
        "UBR": f"dword:{update:08x}",
    }


def with_version(registry: str, build: str) -> str:
    """The text of a Wine registry file with another Windows version in it. Pure. Raises Unavailable without its key."""
    at = registry.find(f"\n{_KEY}")
    if at < 0:
        raise Unavailable(f"the prepared Wine prefix has no registry key {_KEY}: run scripts/windows again")
    start = registry.index("\n", at + 1) + 1
    end = registry.find("\n\n", start)
    section = registry[start:end]
    for name, value in version_values(build).items():
        section = re.sub(rf'^"{name}"=.*\n', "", section + "\n", flags=re.MULTILINE).rstrip("\n")
        section += f'\n"{name}"={value}'
    return registry[:start] + section + registry[end:]


def ensure_prefix(folder: Path, build: str) -> None:
    """The prefix at `folder`, of a host of this build; one that is there stays.

    Raises Unavailable when none has been prepared.
    """
    prepared = home() / "prefix"
    if (folder / "system.reg").exists():
        return
    if not (prepared / "system.reg").exists():
        raise Unavailable(f"no Windows Python in {home()}: run scripts/windows")
    drive = folder / "drive_c"
    (folder / "dosdevices").mkdir(parents=True, exist_ok=True)
    drive.mkdir(exist_ok=True)
    for name in ("ProgramData", "users"):
        (drive / name).mkdir(exist_ok=True)
    for link, target in (
        *((drive / name, prepared / "drive_c" / name) for name in _SHARED),
        (folder / "dosdevices" / "c:", Path("../drive_c")),
        (folder / "dosdevices" / "z:", Path("/")),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for name in _COPIED[1:]:
        shutil.copyfile(prepared / name, folder / name)
    text = (prepared / "system.reg").read_text(errors="surrogateescape")
    partial = folder / "system.reg.new"
    partial.write_text(with_version(text, build), errors="surrogateescape")
    partial.replace(folder / "system.reg")


def remove_server_folder(folder: Path) -> None:
    """What a wineserver that was killed left of itself (wine's server/request.c: /tmp/.wine-UID/server-DEVICE-INODE)."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(folder)
        left = f"/tmp/.wine-{os.getuid()}/server-{found.st_dev:x}-{found.st_ino:x}"
        shutil.rmtree(left, ignore_errors=True)
