"""Whether a container's mounts make sense and whether hosts can make them.

Owns the rules for bind, volume and tmpfs mounts. Pure: whether a source exists is known on the node. Words are
swarmkit's controlapi/service.go and moby's volume/mounts (validate.go, linux_parser.go) and volume/local.
"""

from __future__ import annotations

from overlace.manager.control.base import swarm
from overlace.manager.control.words import ABSOLUTE, unsupported
from overlace.model.errors import InvalidArgument
from overlace.model.specs import BindOptions, Mount
from overlace.model.volumes import check_volume_name, check_volume_options

_PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave")

_NO_SUCH_TYPE = {
    "npipe": "named pipes are Windows' own, and an emulated Windows host has none; use bind, volume or tmpfs",
    "cluster": "there are no CSI plugins; use bind, volume or tmpfs",
    "image": "use bind, volume or tmpfs",
}


def check_mounts(mounts: list[Mount], expanded: list[Mount]) -> None:
    """`expanded`: the same with their templates filled in. Raises InvalidArgument or Unimplemented."""
    seen: set[str] = set()
    for mount, final in zip(mounts, expanded, strict=True):
        if mount.target in seen:
            raise swarm(InvalidArgument(f"ContainerSpec: duplicate mount point: {mount.target}"))
        seen.add(mount.target)
        _check_mount(mount, final)


def _check_mount(mount: Mount, final: Mount) -> None:
    where = f"mount {mount.target or '(no target)'}"
    if mount.type in _NO_SUCH_TYPE:
        raise unsupported(f"{where}: type {mount.type}", _NO_SUCH_TYPE[mount.type])
    if mount.type not in ("bind", "volume", "tmpfs"):
        raise InvalidArgument(f'invalid MountType: "{mount.type}"')
    if not final.target:
        raise InvalidArgument("invalid mount target, must not be empty")
    if not ABSOLUTE.match(final.target):
        raise InvalidArgument(f"invalid mount target, must be an absolute path: {final.target}")
    if final.target.rstrip("/") == "":
        raise InvalidArgument("invalid mount target: the container's root cannot be mounted over")
    if mount.consistency not in ("", "default", "consistent", "cached", "delegated"):
        raise InvalidArgument(f'{where}: invalid Consistency "{mount.consistency}"')
    for kind, given in (
        ("bind", mount.bind_options),
        ("volume", mount.volume_options),
        ("tmpfs", mount.tmpfs_options),
        ("image", mount.image_options),
        ("cluster", mount.cluster_options),
    ):
        if given is not None and kind != mount.type:
            raise InvalidArgument(f"{where}: {kind.capitalize()}Options do not go with type {mount.type}")
    match mount.type:
        case "bind":
            _check_bind(mount, final, where)
        case "volume":
            _check_volume(final, where)
        case _:
            _check_tmpfs(mount, where)


def _check_bind(mount: Mount, final: Mount, where: str) -> None:
    if not final.source:
        raise InvalidArgument(f"invalid mount source, must not be empty ({where})")
    if not ABSOLUTE.match(final.source):
        raise InvalidArgument(f"invalid mount source, must be an absolute path: {final.source}")
    options = mount.bind_options
    if options is None:
        return
    if options.propagation not in _PROPAGATIONS:
        raise InvalidArgument(f'invalid MountPropagation: "{options.propagation}"')
    _check_recursion(mount, options, where)


def _check_recursion(mount: Mount, options: BindOptions, where: str) -> None:
    """moby volume/mounts/linux_parser.go: what goes with what."""
    never, force = options.read_only_non_recursive, options.read_only_force_recursive
    for field, given in (("ReadOnlyNonRecursive", never), ("ReadOnlyForceRecursive", force)):
        if given and not mount.read_only:
            raise InvalidArgument(f"{where}: BindOptions.{field} needs a mount that is ReadOnly")
    if force and never:
        raise InvalidArgument(
            f"{where}: BindOptions.ReadOnlyForceRecursive and ReadOnlyNonRecursive contradict each other"
        )
    if force and options.non_recursive:
        raise InvalidArgument(f"{where}: BindOptions.ReadOnlyForceRecursive does not go with NonRecursive")
    if force and options.propagation not in ("private", "rprivate"):
        raise InvalidArgument(
            f"{where}: BindOptions.ReadOnlyForceRecursive needs Propagation rprivate, not"
            f' "{options.propagation}"'
        )


def _check_volume(final: Mount, where: str) -> None:
    if final.source:
        check_volume_name(final.source)
    options = final.volume_options
    if options is None:
        return
    parts = options.subpath.replace("\\", "/").split("/")
    if options.subpath and (ABSOLUTE.match(options.subpath) or ".." in parts or "\0" in options.subpath):
        raise InvalidArgument(
            f"{where}: subpath must be a relative path within the volume, not '{options.subpath}'"
        )
    if options.subpath and not final.source:
        raise InvalidArgument(f"{where}: VolumeOptions.Subpath needs a volume with a name")
    driver = options.driver_config
    if driver is not None and driver.name not in ("", "local"):
        raise unsupported(f"{where}: volume driver {driver.name}", "hosts have the driver local")
    if driver is not None:
        check_volume_options(driver.options)


def _check_tmpfs(mount: Mount, where: str) -> None:
    if mount.source:
        raise InvalidArgument(f"invalid mount source, must be empty for a tmpfs ({where})")
    options = mount.tmpfs_options
    if options is None:
        return
    if options.size_bytes < 0:
        raise InvalidArgument(f"{where}: TmpfsOptions.SizeBytes cannot be negative")
    if not 0 <= options.mode <= 0o7777:
        raise InvalidArgument(f"{where}: TmpfsOptions.Mode {options.mode} is not a file mode")
    for option in options.options:
        if option not in (["exec"], ["noexec"]):
            raise InvalidArgument(
                f"{where}: invalid tmpfs option {'='.join(option)!r}: only exec and noexec are allowed"
            )
