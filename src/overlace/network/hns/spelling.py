"""The liberties HNS allows in writing: enumerations as words or numbers, members in any case or under a second
name, GUIDs and MACs in either spelling.

Owns bringing a decoded document to the spelling of its struct. Must not know state. Source: what Microsoft's
samples, hcsshim, flannel, Calico and kube-proxy send.
"""

from __future__ import annotations

import re
import typing
import uuid
from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from overlace.network.hns.errors import Code, HcnError

Convert = Callable[[Any, str], Any]  # value, its path -> value as the struct spells it

# struct name -> second name of a member -> the schema's name
ALIASES: dict[str, dict[str, str]] = {
    "HostComputeRoute": {"Setting": "Routes"},
    "HostComputeLoadBalancer": {"VirtualIPs": "FrontendVIPs"},
    "L4ProxySettings": {"Exceptions": "ExceptionList"},
    "OutBoundNatSettings": {"ExceptionList": "Exceptions", "VIP": "VirtualIP"},
}
_TAGGED = {"Data": "Settings"}  # of policies: old samples
_HEX = re.compile(r"^[0-9A-Fa-f]{2}([-:])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}$")


def normal_guid(text: str, field: str = "ID") -> str:
    """Upper case with dashes. Raises HcnError 0x803b0019 naming `field`."""
    try:
        return str(uuid.UUID(text)).upper()
    except (ValueError, AttributeError, TypeError):
        raise HcnError(Code.GUID_CONVERSION_FAILURE, f"{field} {text!r} is not a GUID") from None


def normal_mac(text: str, field: str = "MacAddress") -> str:
    """HNS's spelling 00-15-5D-AA-BB-CC from `:` or `-`, of one interface's address: no group has one. Raises HcnError
    0x80070057 naming `field`."""
    if not _HEX.fullmatch(text):
        raise HcnError(Code.BAD_PARAMETER, f"{field} {text!r} is not a MAC address: write 02-42-0A-00-00-02")
    found = text.replace(":", "-").upper()
    if int(found[:2], 16) & 1 or found == "00-00-00-00-00-00":
        kind = (
            "all zero"
            if found.startswith("00-")
            else "broadcast"
            if found == "FF-FF-FF-FF-FF-FF"
            else "multicast"
        )
        raise HcnError(
            Code.BAD_PARAMETER, f"{field} {text} is {kind}: write one of one interface, 02-42-0A-00-00-02"
        )
    return found


def colon_mac(text: str) -> str:
    """The kernel's spelling 00:15:5d:aa:bb:cc."""
    return text.replace("-", ":").lower()


def refusal(text: str) -> HcnError:
    """The error for what msgspec says of a document: a policy's own codes where it is about a policy."""
    path = text.rpartition("`$")[2].rstrip("`")
    if re.search(r"\.Policies\[[^\]]*\]", path):
        code = Code.INVALID_POLICY_TYPE if path.endswith("].Type") else Code.INVALID_POLICY
        return HcnError(code, text)
    return HcnError(Code.BAD_PARAMETER, text)


def normal_members(raw: dict[str, Any], kind: type[msgspec.Struct], path: str = "$") -> dict[str, Any]:
    """`raw` in the spelling of `kind`, in a copy; JSON nulls are left out. Raises HcnError."""
    plan = _plan(kind)
    out: dict[str, Any] = {}
    for name, value in raw.items():
        if value is None:
            continue
        known = plan.get(name.lower())
        if known is None:
            out[name] = value  # HNS ignores it, and so does msgspec
            continue
        member, convert = known
        if member in out and name != member:
            continue  # written twice: the schema's own name counts
        out[member] = convert(value, f"{path}.{member}") if convert else value
    return out


@cache
def _plan(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Convert | None]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    plan: dict[str, tuple[str, Convert | None]] = {}
    for field in msgspec.structs.fields(kind):
        plan[field.encode_name.lower()] = (field.encode_name, _converter(hints[field.name]))
    config = kind.__struct_config__
    second = dict(ALIASES.get(kind.__name__, {}))
    if config.tag_field:
        plan[config.tag_field.lower()] = (config.tag_field, None)
        if "settings" in plan:
            second |= _TAGGED
    for name, member in second.items():
        plan.setdefault(name.lower(), plan[member.lower()])
    return plan


def _converter(hint: Any) -> Convert | None:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for extra in args[1:]:
            if isinstance(extra, type) and issubclass(extra, (IntFlag, IntEnum)):
                return _number(extra)
        return _converter(args[0])
    if origin is Literal:
        return _word(args)
    if origin is tuple:
        inner = _converter(args[0])
        return _each(inner) if inner else None
    if origin in (Union, UnionType):
        members = [a for a in args if a is not type(None)]
        if len(members) == 1:
            return _converter(members[0])
        if all(isinstance(m, type) and issubclass(m, msgspec.Struct) for m in members):
            return _tagged(members)
        return None
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return lambda value, path: normal_members(value, hint, path) if isinstance(value, dict) else value
    return None


def _word(words: tuple[Any, ...]) -> Convert:
    by_name = {str(w).lower(): w for w in words}

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(words):
            return words[value]
        return by_name.get(value.lower(), value) if isinstance(value, str) else value

    return convert


def _number(enum: type[IntFlag] | type[IntEnum]) -> Convert:
    by_name = {name.lower(): int(value) for name, value in enum.__members__.items()} | {"none": 0}
    every = sum({int(v) for v in enum.__members__.values()})

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, str):
            total = 0
            for part in value.replace("|", ",").split(","):
                if part.strip().lower() not in by_name:
                    raise HcnError(
                        Code.BAD_PARAMETER, f"{path} {value!r}: use a number or {', '.join(enum.__members__)}"
                    )
                total |= by_name[part.strip().lower()]
            return total
        if (
            issubclass(enum, IntFlag)
            and isinstance(value, int)
            and not isinstance(value, bool)
            and value & ~every
        ):
            raise HcnError(
                Code.BAD_PARAMETER, f"{path} {value}: bits {value & ~every:#x} mean nothing to this HNS"
            )
        return value

    return convert


def _each(inner: Convert) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            return value
        return [inner(item, f"{path}[{i}]") for i, item in enumerate(value)]

    return convert


def _tagged(members: list[type[msgspec.Struct]]) -> Convert:
    """A union told apart by `Type`; its order is the schema's enumeration, for ordinals."""
    order = [m.__struct_config__.tag for m in members]
    by_name = {str(tag).lower(): i for i, tag in enumerate(order)}

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        tag = next((v for k, v in value.items() if k.lower() == "type"), None)
        number = by_name.get(tag.lower()) if isinstance(tag, str) else tag
        if not isinstance(number, int) or not 0 <= number < len(order):
            raise HcnError(
                Code.INVALID_POLICY_TYPE, f"Type {tag!r} - at `{path}`: use {', '.join(map(str, order))}"
            )
        out = normal_members(value, members[number], path)
        out["Type"] = order[number]
        return out

    return convert
