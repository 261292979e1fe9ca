"""Whether a ContainerSpec makes sense and whether this product can honour it.

Owns the rules for one container: image, templates, mounts, healthcheck, users' files, limits. Pure: it looks
nothing up. Words are swarmkit's controlapi/service.go, and moby's daemon where it would refuse on the node: a
mistake is told when the service is created, not when its task fails. What no runtime of ours does yet raises
Unimplemented naming the field.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from overlace.manager.control.base import swarm
from overlace.model.errors import InvalidArgument, OverlaceError, Unimplemented
from overlace.model.logoptions import parse_log_options
from overlace.model.reference import parse_reference
from overlace.model.specs import (
    ConfigReference,
    ContainerSpec,
    Driver,
    FileTarget,
    Healthcheck,
    Mount,
    SecretReference,
    Ulimit,
)
from overlace.model.template import Context, expand_container

_MILLISECOND = 1_000_000
_ABSOLUTE = re.compile(r"(?:/|[A-Za-z]:[\\/])")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave")
_ISOLATIONS = ("", "default", "process", "hyperv")
_ULIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
_CAPABILITIES = frozenset(
    """
    AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
    DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN
    MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID
    SETPCAP SETUID SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM ALL
    """.split()  # noqa: SIM905  a list of words reads best as text
)
_SIGNAL = re.compile(r"(?:SIG)?[A-Z0-9+-]+")

# What templates are tried with when a service is checked; the agent expands with the real thing.
_TRIAL = Context(
    service_id="serviceID", service_name="serviceName", node_id="nodeID", node_hostname="nodeHostname",
    node_os="os", node_architecture="architecture", task_id="taskID", task_name="taskName", task_slot="1",
)  # fmt: skip


def unsupported(field: str, why: str) -> Unimplemented:
    return Unimplemented(f"{field} is not supported yet: {why}")


def check_container(spec: ContainerSpec, labels: Mapping[str, str]) -> None:
    """Raises InvalidArgument or Unimplemented for the first thing wrong. `labels`: the service's, for its
    templates."""
    _check_isolation(spec)
    _check_privileges(spec.privileges or {})
    try:
        expanded = expand_container(spec, _with_labels(labels))
    except InvalidArgument as error:
        raise swarm(error) from None
    check_image(spec.image)
    _check_mounts(spec.mounts, expanded.mounts)
    _check_healthcheck(spec.healthcheck)
    _check_process(spec)
    _check_hosts_and_dns(spec)
    check_secret_references(spec.secrets)
    check_config_references(spec.configs)


def _with_labels(labels: Mapping[str, str]) -> Context:
    return msgspec.structs.replace(_TRIAL, service_labels=dict(labels))


def check_image(image: str) -> None:
    if not image:
        raise swarm(InvalidArgument("ContainerSpec: image reference must be provided"))
    try:
        parse_reference(image)
    except InvalidArgument:
        raise swarm(InvalidArgument(f'ContainerSpec: "{image}" is not a valid repository/tag')) from None


def _check_isolation(spec: ContainerSpec) -> None:
    if spec.isolation.lower() not in _ISOLATIONS:
        raise InvalidArgument(
            f'invalid Isolation: "{spec.isolation}"; a Windows container runs with default, process or hyperv'
        )


def _check_privileges(privileges: Mapping[str, Any]) -> None:
    reasons = {
        "CredentialSpec": "no host of ours hands gMSA credentials to a container",
        "SELinuxContext": "containers run without an SELinux label of their own",
        "Seccomp": "containers run with the runtime's default profile",
        "AppArmor": "containers run with the runtime's default profile",
    }
    for key, value in privileges.items():
        if key in reasons:
            if not _is_default(value):
                raise unsupported(f"Privileges.{key}", reasons[key])
        elif key != "NoNewPrivileges":
            raise InvalidArgument(f"unknown field Privileges.{key}")
        elif not isinstance(value, bool):
            raise InvalidArgument(f"Privileges.NoNewPrivileges: expected true or false, not {value!r}")


def _is_default(value: Any) -> bool:
    """Whether a privilege document asks for nothing but what is the case anyway."""
    if isinstance(value, dict):
        return all(_is_default(member) for member in value.values())
    return not value or value == "default"


# -- mounts --


def _check_mounts(mounts: list[Mount], expanded: list[Mount]) -> None:
    seen: set[str] = set()
    for mount, final in zip(mounts, expanded, strict=True):
        if mount.target in seen:
            raise swarm(InvalidArgument(f"ContainerSpec: duplicate mount point: {mount.target}"))
        seen.add(mount.target)
        _check_mount(mount, final)


def _check_mount(mount: Mount, final: Mount) -> None:
    where = f"mount {mount.target or '(no target)'}"
    if mount.type in ("npipe", "cluster", "image"):
        raise unsupported(f"{where}: type {mount.type}", "use bind, volume or tmpfs")
    if mount.type not in ("bind", "volume", "tmpfs"):
        raise InvalidArgument(f'invalid MountType: "{mount.type}"')
    if not final.target:
        raise InvalidArgument("invalid mount target, must not be empty")
    if not _ABSOLUTE.match(final.target):
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
            _check_volume(mount, final, where)
        case _:
            _check_tmpfs(mount, where)


def _check_bind(mount: Mount, final: Mount, where: str) -> None:
    if not final.source:
        raise InvalidArgument(f"invalid mount source, must not be empty ({where})")
    if not _ABSOLUTE.match(final.source):
        raise InvalidArgument(f"invalid mount source, must be an absolute path: {final.source}")
    options = mount.bind_options
    if options is None:
        return
    if options.propagation not in _PROPAGATIONS:
        raise InvalidArgument(f'invalid MountPropagation: "{options.propagation}"')
    for field, given in (
        ("NonRecursive", options.non_recursive),
        ("ReadOnlyNonRecursive", options.read_only_non_recursive),
        ("ReadOnlyForceRecursive", options.read_only_force_recursive),
    ):
        if given:
            raise unsupported(f"{where}: BindOptions.{field}", "leave it out")


def _check_volume(mount: Mount, final: Mount, where: str) -> None:
    if final.source and not _VOLUME_NAME.fullmatch(final.source):
        raise InvalidArgument(
            f'"{final.source}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed.'
            " If you intended to pass a host directory, use absolute path"
        )
    options = mount.volume_options
    if options is None:
        return
    if options.subpath:
        raise unsupported(f"{where}: VolumeOptions.Subpath", "mount the whole volume")
    driver = options.driver_config
    if driver is not None and driver.name not in ("", "local"):
        raise unsupported(f"{where}: volume driver {driver.name}", "hosts have the driver local")
    if driver is not None and driver.options:
        raise unsupported(f"{where}: options of the volume driver", "leave them out")


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
    if options.options:
        raise unsupported(f"{where}: TmpfsOptions.Options", "only size and mode can be set")


# -- the process --


def _check_healthcheck(check: Healthcheck | None) -> None:
    if check is None:
        return
    for field, duration in (
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ):
        if duration != 0 and duration < _MILLISECOND:
            raise swarm(InvalidArgument(f"ContainerSpec: {field} in HealthConfig cannot be less than 1ms"))
    if check.retries < 0:
        raise swarm(InvalidArgument("ContainerSpec: Retries in HealthConfig cannot be negative"))
    if check.test and check.test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise InvalidArgument(f'unknown type "{check.test[0]}" in healthcheck; use NONE, CMD or CMD-SHELL')
    if check.test and check.test[0] in ("CMD", "CMD-SHELL") and len(check.test) < 2:
        raise InvalidArgument(f"healthcheck {check.test[0]} needs a command")


def _check_process(spec: ContainerSpec) -> None:
    for entry in spec.env:
        if not entry or entry.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidArgument(
                f"invalid environment variable {entry.partition('=')[0]}: it holds a NUL character"
            )
    if spec.dir and not _ABSOLUTE.match(spec.dir):
        raise InvalidArgument(
            f"the working directory '{spec.dir}' is invalid, it needs to be an absolute path"
        )
    if spec.stop_grace_period is not None and spec.stop_grace_period < 0:
        raise swarm(InvalidArgument("ContainerSpec: StopGracePeriod cannot be negative"))
    signal = spec.stop_signal.upper()
    if (
        signal
        and not (signal.isdigit() and 0 < int(signal) < 65)
        and (signal.isdigit() or not _SIGNAL.fullmatch(signal))
    ):
        raise InvalidArgument(f"invalid signal: {spec.stop_signal}")
    for field, names in (("CapabilityAdd", spec.capability_add), ("CapabilityDrop", spec.capability_drop)):
        for name in names:
            if name.upper().removeprefix("CAP_") not in _CAPABILITIES:
                raise InvalidArgument(f'invalid {field}: unknown capability: "{name}"')
    for ulimit in spec.ulimits:
        _check_ulimit(ulimit)
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise InvalidArgument(f"Invalid value {spec.oom_score_adj}, range for oom score adj is [-1000, 1000]")


def _check_ulimit(ulimit: Ulimit) -> None:
    if ulimit.name not in _ULIMITS:
        raise InvalidArgument(f"invalid ulimit type: {ulimit.name}")
    if ulimit.hard != -1 and (ulimit.soft == -1 or ulimit.soft > ulimit.hard):
        raise InvalidArgument(
            f"ulimit {ulimit.name}: soft limit must be less than or equal to hard limit:"
            f" {ulimit.soft} > {ulimit.hard}"
        )


def _check_hosts_and_dns(spec: ContainerSpec) -> None:
    for line in spec.hosts:
        address, *names = line.split() or [""]
        if not _is_address(address) or not names:
            raise InvalidArgument(f'invalid entry in Hosts: "{line}"; expected an IP address and a name')
    if spec.dns_config is not None:
        for address in spec.dns_config.nameservers:
            if not _is_address(address):
                raise InvalidArgument(f"invalid IP address in DNSConfig.Nameservers: {address}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# -- secrets, configs, logs --


def check_secret_references(references: list[SecretReference]) -> None:
    taken: dict[str, str] = {}
    for ref in references:
        if not ref.secret_id or not ref.secret_name:
            raise swarm(InvalidArgument("malformed secret reference"))
        if ref.file is None:
            raise swarm(InvalidArgument("malformed secret reference, no target provided"))
        _check_file("secret", ref.secret_name, ref.file, taken)


def check_config_references(references: list[ConfigReference]) -> None:
    taken: dict[str, str] = {}
    for ref in references:
        if not ref.config_id or not ref.config_name:
            raise swarm(InvalidArgument("malformed config reference"))
        if ref.runtime is not None:
            raise unsupported(f"config {ref.config_name}: a Runtime target", "give it a File target")
        if ref.file is None:
            raise swarm(InvalidArgument("malformed config reference, no target provided"))
        _check_file("config", ref.config_name, ref.file, taken)


def _check_file(kind: str, name: str, file: FileTarget, taken: dict[str, str]) -> None:
    if not file.name:
        raise swarm(InvalidArgument(f"malformed file {kind} reference, invalid target file name provided"))
    if file.name in taken:
        raise swarm(
            InvalidArgument(
                f"{kind} references '{taken[file.name]}' and '{name}' have a conflicting target:"
                f" '{file.name}'"
            )
        )
    taken[file.name] = name
    for field, value in (("UID", file.uid), ("GID", file.gid)):
        if value and not value.isdigit():
            raise InvalidArgument(
                f"{kind} {name}: File.{field} '{value}' is not a number; give a numeric one"
            )
    if not 0 <= file.mode <= 0o7777:
        raise InvalidArgument(f"{kind} {name}: File.Mode {file.mode} is not a file mode")


def check_log_driver(driver: Driver | None, where: str) -> None:
    """Logs are kept on the host, by the driver json-file; only their size can be asked for yet."""
    if driver is None:
        return
    if driver.name not in ("", "json-file"):
        raise unsupported(f"{where}: log driver {driver.name}", "hosts keep logs with json-file")
    try:
        parse_log_options(driver.options)
    except OverlaceError as error:
        raise type(error)(f"{where}: {error.message}") from None
