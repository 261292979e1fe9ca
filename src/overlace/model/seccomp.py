"""Seccomp profiles as Docker's users write them, and what they say for one container.

Owns the format (moby profiles/seccomp/seccomp.go): actions by system call, each for certain capabilities and
architectures only. Pure: whether the kernel knows a call is the runtime's to find out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from overlace.model.errors import InvalidArgument

_ACTIONS = frozenset(
    f"SCMP_ACT_{action}"
    for action in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP")
)
_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_GO = {"x86_64": "amd64", "aarch64": "arm64"}


class _Condition(msgspec.Struct, frozen=True):
    caps: list[str] | None = None
    arches: list[str] | None = None
    minKernel: str | None = None


class _Argument(msgspec.Struct, frozen=True):
    index: int
    value: int = 0
    valueTwo: int = 0
    op: str = ""


class _Rule(msgspec.Struct, frozen=True):
    action: str = ""
    names: list[str] | None = None
    name: str = ""
    args: list[_Argument] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None
    errnoRet: int | None = None


class _Map(msgspec.Struct, frozen=True):
    architecture: str
    subArchitectures: list[str] | None = None


class _Profile(msgspec.Struct, frozen=True):
    defaultAction: str = ""
    defaultErrnoRet: int | None = None
    architectures: list[str] | None = None
    archMap: list[_Map] | None = None
    syscalls: list[_Rule] | None = None
    flags: list[str] | None = None


def check_profile(text: bytes | str) -> None:
    """Raises InvalidArgument."""
    _parse(text)


def profile_for(
    text: str, capabilities: Collection[str], machine: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """The OCI runtime's `linux.seccomp` for a container with these capabilities on a `machine` (uname -m)."""
    profile = _parse(text)
    made: dict[str, Any] = {"defaultAction": profile.defaultAction, "syscalls": []}
    if profile.defaultErrnoRet is not None:
        made["defaultErrnoRet"] = profile.defaultErrnoRet
    if profile.flags:
        made["flags"] = profile.flags
    architectures = list(profile.architectures or ())
    for entry in profile.archMap or ():
        if entry.architecture == _NATIVE.get(machine):
            architectures = [entry.architecture, *(entry.subArchitectures or ())]
    if architectures:
        made["architectures"] = architectures
    for rule in profile.syscalls or ():
        names = [*(rule.names or ()), *([rule.name] if rule.name else ())]
        if not names or not _applies(rule, capabilities, machine, kernel):
            continue
        one: dict[str, Any] = {"names": names, "action": rule.action}
        if rule.errnoRet is not None:
            one["errnoRet"] = rule.errnoRet
        if rule.args:
            one["args"] = [msgspec.to_builtins(argument) for argument in rule.args]
        made["syscalls"].append(one)
    return made


def _applies(rule: _Rule, capabilities: Collection[str], machine: str, kernel: tuple[int, int]) -> bool:
    arch = _GO.get(machine, machine)
    only, never = rule.includes or _Condition(), rule.excludes or _Condition()
    if (only.arches and arch not in only.arches) or arch in (never.arches or ()):
        return False
    if not set(only.caps or ()) <= set(capabilities) or set(never.caps or ()) & set(capabilities):
        return False
    if only.minKernel and kernel < _version(only.minKernel):
        return False
    return not (never.minKernel and kernel >= _version(never.minKernel))


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _parse(text: bytes | str) -> _Profile:
    try:
        profile = msgspec.json.decode(text, type=_Profile)
        for rule in profile.syscalls or ():
            for condition in (rule.includes, rule.excludes):
                if condition is not None and condition.minKernel:
                    _version(condition.minKernel)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}") from None
    for action in (profile.defaultAction, *(rule.action for rule in profile.syscalls or ())):
        if action not in _ACTIONS:
            raise InvalidArgument(
                f"seccomp profile: unknown action {action!r}; use one of {', '.join(sorted(_ACTIONS))}"
            )
    return profile
