"""The shop's images: examples/shop compiled, packed and pushed to a lab's registry.

Owns their names and platforms. Must not know swarms; compose.yml says what runs.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path

from overlace.lab.layout import WINDOWS_BUILD
from overlace.lab.shell import run
from overlace.model.errors import NotFound
from overlace.runtime.base import Platform
from overlace.runtime.oci.mkimage import Variant, push, write_layout

LINUX = Platform(os="linux", architecture="amd64")
# The payload is the Linux program: the lab's Windows hosts are emulated, and their images say windows.
WINDOWS = Platform(os="windows", architecture="amd64", os_version=WINDOWS_BUILD)
SERVICES: dict[str, tuple[Platform, ...]] = {"web": (LINUX,), "order": (WINDOWS,), "store": (LINUX,)}


def source_dir() -> Path:
    """The folder of the shop in a checkout. Raises NotFound outside of one."""
    folder = Path(__file__).resolve().parents[3] / "examples/shop"
    if not (folder / "shop.c").exists():
        raise NotFound(f"{folder} is not there; the shop comes with a checkout of the repository")
    return folder


def image_name(registry: str, service: str) -> str:
    return f"{registry}/shop-{service}:1"


def push_images(registry: str, services: Mapping[str, tuple[Platform, ...]] = SERVICES) -> dict[str, str]:
    """Compile the shop, pack one image per service and push them; return digests by image name.

    Raises Internal with the compiler's words, Unavailable with the registry's.
    """
    return asyncio.run(_push_images(registry, services))


async def _push_images(registry: str, services: Mapping[str, tuple[Platform, ...]]) -> dict[str, str]:
    digests = {}
    with tempfile.TemporaryDirectory(prefix="overlace-shop-") as scratch:
        root = Path(scratch)
        binary = root / "shop"
        # Static, since the image holds nothing else; ld's warning about getaddrinfo is about NSS plug-ins.
        run(
            ["gcc", "-O2", "-static", "-pthread", "-o", str(binary), str(source_dir() / "shop.c")],
            timeout=120,
        )
        for service, platforms in services.items():
            rootfs = root / "rootfs" / service
            for folder in ("etc", "proc", "sys", "dev", "run", "tmp"):
                (rootfs / folder).mkdir(parents=True)
            (rootfs / "shop").write_bytes(binary.read_bytes())
            (rootfs / "shop").chmod(0o755)
            config = {
                "Entrypoint": ["/shop"],
                "Cmd": [service],
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGTERM",
                "WorkingDir": "/",
            }
            write_layout(root / "layout", [Variant(p, rootfs, config) for p in platforms], service)
            name = image_name(registry, service)
            digests[name] = await push(root / "layout", service, name)
    return digests
