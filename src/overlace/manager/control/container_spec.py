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

import msgspec

from overlace.manager.control.base import swarm
from overlace.manager.control.mount_spec import check_mounts
from overlace.manager.control.privileges import check_privileges
from overlace.manager.control.words import ABSOLUTE, unsupported
from overlace.model.errors import InvalidArgument, OverlaceError
from overlace.model.logoptions import log_choice
from overlace.model.reference import parse_reference
from overlace.model.specs import (
    ConfigReference,
    ContainerSpec,
    Driver,
    FileTarget,
    Healthcheck,
    SecretReference,
    Ulimit,
)
from overlace.model.template import Context, expand_container

_MILLISECOND = 1_000_000
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


def check_container(spec: ContainerSpec, labels: Mapping[str, str]) -> None:
    """Raises InvalidArgument or Unimplemented for the first thing wrong. `labels`: the service's, for its
    templates."""
    _check_isolation(spec)
    check_privileges(spec.privileges or {}, spec.configs)
    try:
        expanded = expand_container(spec, _with_labels(labels))
    except InvalidArgument as error:
        raise swarm(error) from None
    check_image(spec.image)
    check_mounts(spec.mounts, expanded.mounts)
    check_healthcheck(spec.healthcheck)
    check_process(spec)
    check_hosts_and_dns(spec)
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


# -- the process --


def check_healthcheck(check: Healthcheck | None) -> None:
    """Raises InvalidArgument."""
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


def check_process(spec: ContainerSpec) -> None:
    """Environment, folder, stop signal, capabilities and limits. Raises InvalidArgument."""
    for entry in spec.env:
        if not entry or entry.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidArgument(
                f"invalid environment variable {entry.partition('=')[0]}: it holds a NUL character"
            )
    if spec.dir and not ABSOLUTE.match(spec.dir):
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


def check_hosts_and_dns(spec: ContainerSpec) -> None:
    """Raises InvalidArgument."""
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
            raise unsupported(
                f"config {ref.config_name}: a Runtime target",
                "it is for credential specs, which no host takes; give it a File target",
            )
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
    """Raises InvalidArgument or Unimplemented naming the field."""
    try:
        log_choice(driver)
    except OverlaceError as error:
        raise type(error)(f"{where}: {error.message}") from None
