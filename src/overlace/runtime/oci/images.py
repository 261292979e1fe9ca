"""The local image store: what was pulled, under which names, unpacked once into a shared read-only root.

Owns `<data-root>/images`: `blobs/` (shared by all), `layouts/<id>/` (an OCI layout each, its blobs a link to
the shared ones, so that concurrent pulls never rewrite one index), `rootfs/<id>/` and `index.json`. Must not
know containers beyond the question "who uses this image".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from overlace.model.errors import Internal, NotFound, OverlaceError, Unavailable
from overlace.model.reference import Reference, parse_reference
from overlace.runtime.base import Image, Platform, PullProgress, RegistryAuth
from overlace.runtime.oci.files import remove_tree, tree_size, write_atomically
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.platforms import (
    choose_manifest,
    is_index,
    normal,
    platform_of,
    platform_text,
    runs_on,
)
from overlace.runtime.oci.process import require_tool, run_tool
from overlace.runtime.oci.pulls import Progress, Pulls
from overlace.runtime.oci.skopeo import Skopeo
from overlace.runtime.oci.untag import User, is_hex, plan_removal

log = structlog.get_logger(__name__)
PARALLEL_PULLS = 3


class Stored(msgspec.Struct, frozen=True):
    """An image as `index.json` keeps it; `manifests` are all registry digests it is known by (index and
    single).
    """

    image: Image
    manifests: tuple[str, ...]

    @property
    def hex(self) -> str:
        return self.image.id.removeprefix("sha256:")


class ImageStore:
    """All verbs on images; `users(image_id)` answers which containers hold one."""

    def __init__(
        self, root: Path, insecure_registries: Iterable[str], users: Callable[[str], Sequence[User]]
    ) -> None:
        self._root = root
        self._skopeo = Skopeo(frozenset(insecure_registries))
        self._users = users
        self._images: dict[str, Stored] = {}
        self._pulls = Pulls()
        self._locks = KeyedLocks()
        self._slots = asyncio.Semaphore(PARALLEL_PULLS)
        self._sweep_due = False
        self._busy = 0
        self._sweeper: asyncio.Task[None] | None = None

    # ---- opening ----

    async def open(self) -> None:
        """Read the index and remove what no index entry and no container holds (an interrupted pull)."""
        for name in ("blobs/sha256", "layouts", "rootfs"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        index = self._root / "index.json"
        try:
            stored = msgspec.json.decode(index.read_bytes(), type=list[Stored])
        except FileNotFoundError:
            stored = []
        except (OSError, msgspec.DecodeError) as error:
            # Only a record of what can be pulled again: put it aside rather than refuse to run this host.
            log.warning(
                "image index unreadable, images will be pulled again", path=str(index), error=str(error)
            )
            with contextlib.suppress(OSError):
                os.replace(index, index.with_suffix(".unreadable"))
            stored = []
        self._images = {entry.image.id: entry for entry in stored}
        self._sweep_due = True
        await self._sweep()

    async def close(self) -> None:
        """Break off pulls under way; their parts are swept at the next open."""
        tasks: list[asyncio.Task[Any]] = [*self._pulls.cancel()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- looking ----

    def all(self) -> list[Image]:
        return [entry.image for entry in self._images.values()]

    def find(self, name: str) -> Image:
        """By id, id prefix, reference (default tag `latest`) or digest. Raises NotFound in Docker's words."""
        return self._find(name).image

    def _find(self, name: str) -> Stored:
        found = self._lookup(name)
        if found is None:
            raise NotFound(f"No such image: {name}")
        return found

    def _lookup(self, name: str) -> Stored | None:
        bare = name.removeprefix("sha256:")
        if name.startswith("sha256:") or is_hex(bare):
            matches = [entry for entry in self._images.values() if entry.hex.startswith(bare)]
            if len(matches) == 1:
                return matches[0]
            if len(matches) > 1:
                raise NotFound(f"multiple IDs found with provided prefix: {name}")
        try:
            reference = parse_reference(name).with_default_tag()
        except OverlaceError:
            return None
        if reference.digest:
            known = self._by_manifest(reference.digest)
            named = known is not None and any(
                d.split("@")[0] == reference.familiar_name for d in known.image.digests
            )
            return known if named else None
        return next((e for e in self._images.values() if reference.familiar_tag in e.image.tags), None)

    def rootfs(self, image_id: str) -> Path:
        """The unpacked root file system; exists only after `ensure_rootfs`."""
        return self._root / "rootfs" / image_id.removeprefix("sha256:")

    # ---- pulling ----

    async def pull(
        self, name: str, platform: Platform, auth: RegistryAuth | None, listener: PullProgress | None = None
    ) -> Image:
        """Fetch and unpack. Pulls of the same name, platform and credentials under way are joined, not
        repeated.
        """
        reference, platform = parse_reference(name).with_default_tag(), normal(platform)
        key = (f"{reference.name}:{reference.tag}@{reference.digest}", platform, auth)
        return await self._pulls.join(
            key, lambda progress: self._pull(reference, name, platform, auth, progress), listener
        )

    async def _pull(
        self,
        reference: Reference,
        name: str,
        platform: Platform,
        auth: RegistryAuth | None,
        progress: Progress,
    ) -> Image:
        with self._filling():
            known = self._by_manifest(reference.digest, platform) if reference.digest else None
            if known is not None and self._usable(known):
                await self.ensure_rootfs(known.image.id)
                return self._name(known, reference, reference.digest)
            async with self._slots:
                return await self._fetch(reference, name, platform, auth, progress)

    async def _fetch(
        self,
        reference: Reference,
        name: str,
        platform: Platform,
        auth: RegistryAuth | None,
        progress: Progress,
    ) -> Image:
        raw = await self._skopeo.manifest(reference, "", name, auth)
        top = chosen = digest_of(raw)
        manifest = _document(raw, name)
        if is_index(manifest):
            chosen = str(choose_manifest(manifest, platform, name)["digest"])
        async with self._locks.hold(chosen):
            known = self._by_manifest(chosen)
            if known is None or not self._usable(known):
                if chosen != top:
                    manifest = _document(await self._skopeo.manifest(reference, chosen, name, auth), name)
                known = await self._store(reference, name, platform, auth, chosen, manifest, progress)
        await self.ensure_rootfs(known.image.id)
        return self._name(self._images.get(known.image.id, known), reference, top, chosen)

    async def _store(
        self,
        reference: Reference,
        name: str,
        platform: Platform,
        auth: RegistryAuth | None,
        digest: str,
        manifest: dict[str, Any],
        progress: Progress,
    ) -> Stored:
        """Copy one manifest's image into the store and unpack it; nothing stays behind on failure."""
        if "config" not in manifest:
            raise Unavailable(
                f"pull of {name}: manifest schema {manifest.get('schemaVersion')} of type "
                f"{manifest.get('mediaType')!r} is not supported: push it again with a current tool"
            )
        config = _document(await self._skopeo.config(reference, digest, name, auth), name)
        own = platform_of(config)
        if not runs_on(own, platform):
            raise NotFound(
                f"image {name} is for {platform_text(own)}, this host runs {platform_text(platform)}"
            )
        image_id = str(manifest["config"]["digest"])
        known = self._images.get(image_id)
        if known is not None:  # the same image under another manifest (pushed again with other compression)
            self._replace(known, manifests=(*known.manifests, digest))
            return self._images[image_id]
        layout = self._root / "layouts" / image_id.removeprefix("sha256:")
        try:
            layout.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (layout / "blobs").symlink_to("../../blobs")
            with contextlib.suppress(KeyError, TypeError, ValueError):  # skopeo says what is wrong with it
                for blob, size, wanted in _parts(manifest, self._root / "blobs/sha256"):
                    if size not in (-1, wanted):  # cut short by a crash: skopeo would take it for the whole
                        blob.unlink()
            layers = self._layers(manifest)
            progress.say((d for d, blob in layers.items() if blob.exists()), "Already exists")
            progress.say(layers, "Pulling fs layer")
            async with _beside(progress.watch(layers)):
                await self._skopeo.copy(reference, digest, name, layout, auth)
            progress.say(layers, "Download complete")
            size = await self._unpack(image_id, name)
            progress.say(layers, "Pull complete")
        except OSError as error:
            self._sweep_due = True
            raise Internal(f"pull of {name}: {error.strerror}: {error.filename}") from error
        except BaseException:
            self._sweep_due = True
            raise
        image = Image(
            id=image_id,
            tags=(),
            digests=(),
            platform=own,
            created=str(config.get("created") or ""),
            size=size,
            config=dict(config.get("config") or {}),
            layers=tuple((config.get("rootfs") or {}).get("diff_ids") or ()),
        )
        stored = Stored(image, (digest,))
        self._images[image_id] = stored
        self._save()
        return stored

    def _usable(self, stored: Stored) -> bool:
        """Whether its root is unpacked or can be. An image whose blobs somebody removed or cut is forgotten, so that
        it is fetched again; a root containers use stays."""
        if self.rootfs(stored.image.id).is_dir():
            return True
        if _is_whole(self._root / "layouts" / stored.hex):
            return True
        log.warning("an image lacks some of its blobs, fetching it again", id=stored.image.id)
        self._images.pop(stored.image.id, None)
        return False

    def _layers(self, manifest: dict[str, Any]) -> dict[str, Path]:
        """A manifest's layers by digest, and where their blobs will be."""
        digests = [str(layer["digest"]) for layer in manifest.get("layers", ())]
        return {d: self._root / "blobs" / "sha256" / d.removeprefix("sha256:") for d in digests}

    async def ensure_rootfs(self, image_id: str) -> Path:
        """The unpacked root, unpacked again if somebody removed it. Raises Internal when the image is
        corrupted.
        """
        rootfs = self.rootfs(image_id)
        if not rootfs.is_dir():
            with self._filling():
                async with self._locks.hold(image_id):
                    if not rootfs.is_dir():
                        await self._unpack(image_id, self._label(image_id))
        return rootfs

    async def _unpack(self, image_id: str, name: str) -> int:
        """Apply the layers (whiteouts, owners, modes) with umoci beside the final place, then rename; returns
        the size.
        """
        tool = require_tool("umoci")
        hex_id = image_id.removeprefix("sha256:")
        target, partial = self.rootfs(image_id), self._root / "rootfs" / f".{hex_id}.new"
        await asyncio.to_thread(remove_tree, partial)
        layout = self._root / "layouts" / hex_id
        finished = await run_tool([tool, "raw", "unpack", "--image", f"{layout}:image", str(partial)])
        if finished.code != 0:
            await asyncio.to_thread(remove_tree, partial)
            words = (finished.stderr.splitlines() or ["no message"])[-1].strip()
            if "no space left" in words:
                raise Unavailable(
                    f"cannot unpack image {name}: no space left on device: free disk space on this host's data root"
                )
            raise Internal(
                f"cannot unpack image {name}: {words}: if it is corrupted, remove it and pull it again"
            )
        partial.chmod(0o755)
        size = await asyncio.to_thread(tree_size, partial)
        if target.is_dir():
            await asyncio.to_thread(remove_tree, partial)
        else:
            os.replace(partial, target)
        return size

    def _by_manifest(self, digest: str, platform: Platform | None = None) -> Stored | None:
        known = (entry for entry in self._images.values() if digest in entry.manifests)
        return next((e for e in known if platform is None or runs_on(e.image.platform, platform)), None)

    def _name(self, stored: Stored, reference: Reference, *digests: str) -> Image:
        """Note that `reference` names this image now, and (by tag) no other any more."""
        image, tag = stored.image, reference.familiar_tag if not reference.digest else ""
        pinned = f"{reference.familiar_name}@{digests[0]}"
        if tag:
            for other in list(self._images.values()):
                if tag in other.image.tags and other.image.id != image.id:
                    tags = tuple(t for t in other.image.tags if t != tag)
                    self._replace(other, tags=tags)
        tags = image.tags if not tag or tag in image.tags else (*image.tags, tag)
        known = image.digests if pinned in image.digests else (*image.digests, pinned)
        manifests = tuple(dict.fromkeys((*stored.manifests, *digests)))
        if (tags, known, manifests) != (image.tags, image.digests, stored.manifests):
            self._replace(stored, tags=tags, digests=known, manifests=manifests)
            self._save()
        return self._images[image.id].image

    def _replace(
        self,
        stored: Stored,
        *,
        tags: tuple[str, ...] | None = None,
        digests: tuple[str, ...] | None = None,
        manifests: tuple[str, ...] | None = None,
    ) -> None:
        image = stored.image
        changed = msgspec.structs.replace(
            image,
            tags=image.tags if tags is None else tags,
            digests=image.digests if digests is None else digests,
        )
        self._images[image.id] = Stored(changed, stored.manifests if manifests is None else manifests)

    # ---- removing ----

    async def remove(self, name: str, force: bool) -> list[str]:
        """As `docker image rm`: returns the lines it prints (`Untagged: X`, `Deleted: sha256:…`).

        With `force`, an image containers still use loses its names only; its files stay for them.
        Raises NotFound, Conflict in Docker's words.
        """
        stored = self._find(name)
        removal = plan_removal(name, stored.image, self._users(stored.image.id), force)
        if not removal.gone:
            self._replace(stored, tags=removal.tags, digests=removal.digests)
            self._save()
            return list(removal.lines)
        del self._images[stored.image.id]
        self._save()
        self._sweep_due = True
        await self._sweep()
        return list(removal.lines)

    @contextlib.contextmanager
    def _filling(self) -> Iterator[None]:
        """While blobs or roots are being written nothing is swept; the last writer sweeps if it is due."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._sweep_due and not self._busy:
                self._sweeper = asyncio.create_task(self._sweep(), name="sweep images")

    async def _sweep(self) -> None:
        """Remove folders and blobs nothing refers to; never while a pull is filling them."""
        if not self._sweep_due or self._busy:
            return
        self._sweep_due = False
        kept = {entry.hex for entry in self._images.values()}
        doomed: list[Path] = []
        for folder in ("layouts", "rootfs"):
            for path in (self._root / folder).iterdir():
                if path.name not in kept and (
                    path.name.startswith(".") or not self._users(f"sha256:{path.name}")
                ):
                    aside = path if path.name.startswith(".") else path.with_name(f".{path.name}.old")
                    with contextlib.suppress(OSError):
                        os.replace(path, aside)
                    doomed.append(aside)
        blobs = self._root / "blobs" / "sha256"
        referenced = self._referenced_blobs(kept)
        for blob in blobs.iterdir():
            if referenced is not None and blob.name not in referenced:
                blob.unlink(missing_ok=True)
        for path in (self._root / "blobs").glob("oci-put-blob*"):
            path.unlink(missing_ok=True)
        for path in doomed:
            await asyncio.to_thread(remove_tree, path)

    def _referenced_blobs(self, kept: set[str]) -> set[str] | None:
        """Hex digests the kept layouts need; None (touch nothing) when one cannot be read."""
        needed: set[str] = set()
        for hex_id in kept:
            layout = self._root / "layouts" / hex_id
            try:
                for entry in msgspec.json.decode((layout / "index.json").read_bytes())["manifests"]:
                    digest = str(entry["digest"]).removeprefix("sha256:")
                    manifest = msgspec.json.decode((layout / "blobs/sha256" / digest).read_bytes())
                    needed.add(digest)
                    for blob in (manifest["config"], *manifest["layers"]):
                        needed.add(str(blob["digest"]).removeprefix("sha256:"))
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return needed

    def _label(self, image_id: str) -> str:
        entry = self._images.get(image_id)
        return entry.image.tags[0] if entry and entry.image.tags else image_id

    def _save(self) -> None:
        write_atomically(
            self._root / "index.json", msgspec.json.encode(list(self._images.values())), sync=True
        )


def _is_whole(layout: Path) -> bool:
    """Whether an OCI layout has all its blobs, in full length."""
    blobs = layout / "blobs/sha256"
    try:
        for entry in msgspec.json.decode((layout / "index.json").read_bytes())["manifests"]:
            manifest = msgspec.json.decode((blobs / str(entry["digest"])[7:]).read_bytes())
            if any(size != wanted for _, size, wanted in _parts(manifest, blobs)):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _parts(manifest: dict[str, Any], blobs: Path) -> Iterator[tuple[Path, int, int]]:
    """(path, octets there, octets it should have) of a manifest's blobs; -1 for one that is not there."""
    for part in (manifest["config"], *manifest.get("layers", ())):
        blob = blobs / str(part["digest"]).removeprefix("sha256:")
        yield blob, blob.stat().st_size if blob.is_file() else -1, int(part["size"])


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` while the block runs, no longer."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _document(raw: bytes, name: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"pull of {name}: the registry sent a document that is not JSON ({error})"
        ) from error
