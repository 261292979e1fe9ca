"""Small images from local files, without any network: for the lab, the demo and the tests.

Owns the writing of an OCI image layout (image-spec v1) and its push to a registry (distribution-spec).
Must not know the runtime. Output is reproducible: the same files give the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yarl

from overlace.model.errors import InvalidArgument, NotFound, Unavailable
from overlace.model.reference import parse_reference
from overlace.runtime.base import Platform

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_TAG_KEY = "org.opencontainers.image.ref.name"
_EPOCH = "1970-01-01T00:00:00Z"


class Variant(msgspec.Struct, frozen=True):
    """One platform's image: a root file system and the OCI config's `config` object (Cmd, Env, Healthcheck,
    …).
    """

    platform: Platform
    rootfs: Path
    config: dict[str, Any]


def busybox_rootfs(
    dest: Path, files: Mapping[str, Path | bytes] | None = None, *, applets: Iterable[str] | None = None
) -> Path:
    """A root file system at `dest`: static busybox with its applets, the usual folders, and `files` (path ->
    source).

    A file is executable if its source file is; bytes are executable when they start with `#!`.
    Raises NotFound when busybox is not on this machine.
    """
    source = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)
    if source is None:
        raise NotFound(
            "busybox is not installed on this host: install it (Debian: apt install busybox-static)"
        )
    for folder in (
        "bin",
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "sbin",
        "var/tmp",
    ):
        (dest / folder).mkdir(parents=True, exist_ok=True)
    (dest / "tmp").chmod(0o1777)
    shutil.copy2(source, dest / "bin/busybox")
    names = applets if applets is not None else _applets(source)
    for name in names:
        link = dest / "bin" / name
        if name != "busybox" and not link.is_symlink():
            link.symlink_to("busybox")
    (dest / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    )
    (dest / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name, content in (files or {}).items():
        target = dest / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
            target.chmod(0o755 if content.startswith(b"#!") else 0o644)
        else:
            shutil.copy2(content, target)
    return dest


def _applets(busybox: str) -> list[str]:
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    return listed.stdout.split()


def write_layout(dest: Path, variants: Sequence[Variant], tag: str) -> str:
    """Write an OCI layout at `dest` holding the variants under `tag` and return the digest a pull of `tag`
    resolves to.

    One variant gives a single manifest; several give an image index whose entries carry os, architecture and
    os.version. Layouts are added to: other tags and blobs at `dest` stay. Raises InvalidArgument when
    `variants` is empty.
    """
    if not variants:
        raise InvalidArgument("variants: an image needs at least one platform")
    (dest / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (dest / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    entries = [_write_variant(dest, variant) for variant in variants]
    if len(entries) == 1:
        root = dict(entries[0])
    else:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        root = _put(dest, INDEX, msgspec.json.encode(document))
    root["annotations"] = {_TAG_KEY: tag}
    index_path = dest / "index.json"
    known = msgspec.json.decode(index_path.read_bytes())["manifests"] if index_path.exists() else []
    kept = [entry for entry in known if entry.get("annotations", {}).get(_TAG_KEY) != tag]
    index_path.write_bytes(
        msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, root]})
    )
    return str(root["digest"])


def _write_variant(dest: Path, variant: Variant) -> dict[str, Any]:
    tar = _tar(variant.rootfs)
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
        file.write(tar)
    platform: dict[str, Any] = {"architecture": variant.platform.architecture, "os": variant.platform.os}
    if variant.platform.os_version:
        platform["os.version"] = variant.platform.os_version
    if variant.platform.variant:
        platform["variant"] = variant.platform.variant
    config = {
        "created": _EPOCH,
        **platform,
        "config": variant.config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": _EPOCH, "created_by": "overlace mkimage"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(dest, CONFIG, msgspec.json.encode(config)),
        "layers": [_put(dest, LAYER, packed.getvalue())],
    }
    return {**_put(dest, MANIFEST, msgspec.json.encode(manifest)), "platform": platform}


def _put(dest: Path, media_type: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (dest / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _tar(rootfs: Path) -> bytes:
    """A root file system as a tar: sorted, owned by root, no times; hard links and devices are not kept."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(rootfs.rglob("*")):
            info = tar.gettarinfo(path, arcname=str(path.relative_to(rootfs)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = "root"
            if info.islnk():
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
            if info.isreg():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    return out.getvalue()


async def push(layout: Path, tag: str, reference: str, insecure: bool = True) -> str:
    """Push what `tag` names in `layout` to `reference` (`host:port/name:tag`), all platforms; returns its
    digest.

    `insecure` speaks plain HTTP. Raises NotFound for an unknown tag, Unavailable with the registry's words.
    """
    parsed = parse_reference(reference).with_default_tag()
    entries = msgspec.json.decode((layout / "index.json").read_bytes())["manifests"]
    root = next((entry for entry in entries if entry.get("annotations", {}).get(_TAG_KEY) == tag), None)
    if root is None:
        raise NotFound(f"tag {tag} is not in layout {layout}")
    base = f"{'http' if insecure else 'https'}://{parsed.domain}/v2/{parsed.path}"
    try:
        async with aiohttp.ClientSession() as session:
            await _push_manifest(session, base, layout, root, parsed.tag)
    except aiohttp.ClientError as error:
        raise Unavailable(f"push to {reference}: {error}") from error
    return str(root["digest"])


async def _push_manifest(
    session: aiohttp.ClientSession, base: str, layout: Path, entry: dict[str, Any], name: str
) -> None:
    data = _blob(layout, entry["digest"])
    document = msgspec.json.decode(data)
    for child in document.get("manifests", ()):
        await _push_manifest(session, base, layout, child, child["digest"])
    if "layers" in document:
        for blob in (document["config"], *document["layers"]):
            await _push_blob(session, base, layout, blob["digest"])
    async with session.put(
        f"{base}/manifests/{name}", data=data, headers={"Content-Type": entry["mediaType"]}
    ) as answer:
        if answer.status >= 300:
            raise Unavailable(f"push of {base}/manifests/{name}: {answer.status} {await answer.text()}")


async def _push_blob(session: aiohttp.ClientSession, base: str, layout: Path, digest: str) -> None:
    async with session.head(f"{base}/blobs/{digest}") as answer:
        if answer.status == 200:
            return
    async with session.post(f"{base}/blobs/uploads/") as answer:
        if answer.status != 202:
            raise Unavailable(f"push of blob {digest}: {answer.status} {await answer.text()}")
        location = answer.url.join(yarl.URL(answer.headers["Location"], encoded=True))
    async with session.put(
        location.update_query(digest=digest),
        data=io.BytesIO(_blob(layout, digest)),  # not bytes: aiohttp warns of those past 1 MiB
        headers={"Content-Type": "application/octet-stream"},
    ) as answer:
        if answer.status != 201:
            raise Unavailable(f"push of blob {digest}: {answer.status} {await answer.text()}")


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()
