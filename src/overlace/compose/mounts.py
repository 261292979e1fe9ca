"""A service's `volumes` and `tmpfs`, short and long.

Owns their keys. A named volume keeps the name it has in the file; desired.py gives it its own. Must not know stacks.
"""

from __future__ import annotations

from overlace.compose.problems import Mark
from overlace.compose.project import VolumeUse
from overlace.compose.reader import Reader
from overlace.compose.shorthand import BadValue, is_absolute, parse_size, parse_volume, short_tmpfs
from overlace.model.specs import BindOptions, Mount, TmpfsOptions, VolumeOptions

TYPES = ("bind", "volume", "tmpfs", "npipe", "cluster", "image")
_SECTIONS = ("bind", "volume", "tmpfs", "image")
_CONSISTENCIES = ("default", "consistent", "cached", "delegated")


def read_mounts(reader: Reader) -> list[VolumeUse]:
    found: list[VolumeUse] = []
    for path, node in reader.items("volumes"):
        if isinstance(node.value, dict):
            long = _long(Reader(node, path, reader.problems))
            found += [long] if long is not None else []
        else:
            short = _short(reader, path, reader.as_text(node, path, "/"), node.mark)
            found += [short] if short is not None else []
    for number, text in enumerate(reader.texts("tmpfs", or_one=True)):
        mount = _tmpfs(reader, f"{reader.at('tmpfs')}[{number}]", text)
        if mount is not None:
            found.append(VolumeUse(mount))
    targets: set[str] = set()
    for use in found:
        if use.mount.target in targets:
            reader.problems.error(
                reader.where("volumes"), reader.at("volumes"), f"{use.mount.target} is mounted twice"
            )
        targets.add(use.mount.target)
    return found


def _short(reader: Reader, path: str, text: str, mark: Mark) -> VolumeUse | None:
    try:
        volume = parse_volume(text)
    except BadValue as error:
        reader.problems.error(mark, path, str(error))
        return None
    for option in volume.ignored:
        reader.problems.warn(mark, path, f'"{option}" is left out: it means nothing to a swarm')
    options = BindOptions(volume.propagation) if volume.propagation else None
    if volume.type == "bind":
        return VolumeUse(Mount("bind", volume.source, volume.target, volume.read_only, bind_options=options))
    own = VolumeOptions(no_copy=volume.no_copy) if volume.source or volume.no_copy else None
    mount = Mount("volume", volume.source, volume.target, volume.read_only, volume_options=own)
    return VolumeUse(mount, bool(volume.source))


def _tmpfs(reader: Reader, path: str, text: str) -> Mount | None:
    target, options = short_tmpfs(text)
    size = mode = 0
    try:
        size = parse_size(options.pop("size", "0"))
        mode = int(options.pop("mode", "0"), 8)
    except (BadValue, ValueError) as error:
        reader.problems.error(reader.where("tmpfs"), path, str(error))
    if options:
        reader.problems.error(
            reader.where("tmpfs"),
            path,
            f"options {', '.join(sorted(options))} cannot be honoured; a swarm has size and mode",
        )
    return Mount("tmpfs", "", target, tmpfs_options=TmpfsOptions(size, mode) if size or mode else None)


def _long(reader: Reader) -> VolumeUse | None:
    kind = reader.choice("type", TYPES)
    source, target = reader.text("source"), reader.text("target")
    read_only = reader.boolean("read_only") or False
    consistency = reader.choice("consistency", _CONSISTENCIES)
    if not kind and "type" not in reader:
        reader.problems.error(reader.mark, reader.at("type"), f"name its type: one of {', '.join(TYPES[:3])}")
    bind, volume, tmpfs = (
        _bind(reader.sub("bind")),
        _volume(reader.sub("volume")),
        _tmpfs_options(reader.sub("tmpfs")),
    )
    for section in _SECTIONS:
        if (
            section != kind
            and reader.node(section) is not None
            and not (section == "bind" and kind == "npipe")
        ):
            reader.error(section, f"does not go with type {kind}")
    if kind in ("cluster", "image"):
        reader.error("type", f"there are no {kind} mounts; use bind, volume or tmpfs")
    if kind == "bind" and not is_absolute(source) and not source.startswith("~"):
        reader.error("source", "a bind mount names a place on the host; give its path")
    if kind == "tmpfs" and source:
        reader.error("source", "a tmpfs begins empty; leave source out")
    if not target:
        reader.problems.error(reader.mark, reader.at("target"), "name the place in the container")
    reader.done()
    if not kind or not target:
        return None
    if kind == "volume" and source and volume is None:
        volume = VolumeOptions()
    mount = Mount(
        kind,
        source,
        target,
        read_only,
        consistency,
        bind_options=bind,
        volume_options=volume,
        tmpfs_options=tmpfs,
    )
    return VolumeUse(mount, kind == "volume" and bool(source))


def _bind(reader: Reader | None) -> BindOptions | None:
    if reader is None:
        return None
    found = BindOptions(
        reader.choice("propagation", ("private", "rprivate", "shared", "rshared", "slave", "rslave")),
        create_mountpoint=reader.boolean("create_host_path") or False,
    )
    recursive = reader.choice("recursive", ("enabled", "disabled", "writable", "readonly"))
    if recursive not in ("", "enabled"):
        reader.error("recursive", "mounts below are always mounted too; leave it out")
    if reader.node("selinux") is not None:
        reader.error("selinux", "hosts relabel nothing; leave it out")
    reader.done()
    return found


def _volume(reader: Reader | None) -> VolumeOptions | None:
    if reader is None:
        return None
    found = VolumeOptions(
        reader.boolean("nocopy") or False, reader.labels("labels"), subpath=reader.text("subpath")
    )
    reader.done()
    return found


def _tmpfs_options(reader: Reader | None) -> TmpfsOptions | None:
    if reader is None:
        return None
    found = TmpfsOptions(reader.size("size") or 0, reader.integer("mode") or 0)
    reader.done()
    return found
