"""Between bytes of the Engine API and our structs: request bodies, filters, flags, times.

Owns how tolerant the edge is: `null` counts as absent (Go clients send it for empty lists and maps), member
names match in any case (docker-py relies on it), everything else is strict and an error names field and
value. Pure. Must not know routes nor what a document means.
"""

from __future__ import annotations

import datetime
import re
import time
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from overlace.model.errors import InvalidArgument

T = TypeVar("T")

# Members that are unsigned in the Engine API (moby api/types); Go refuses a negative number while decoding.
_UNSIGNED = {
    **dict.fromkeys(
        (
            "Replicas",
            "MaxConcurrent",
            "TotalCompletions",
            "Parallelism",
            "MaxAttempts",
            "MaxReplicas",
            "ForceUpdate",
            "SnapshotInterval",
            "KeepOldSnapshots",
            "LogEntriesForSlowFollowers",
            "ForceRotate",
        ),
        "uint64",
    ),
    **dict.fromkeys(("TargetPort", "PublishedPort", "DataPathPort", "SubnetSize", "Mode"), "uint32"),
}
_LIMIT = {"uint64": 2**64, "uint32": 2**32}
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+)\]")
ZERO_TIME = "0001-01-01T00:00:00Z"
FALSE_WORDS = frozenset(("", "0", "no", "false", "none"))


# -- JSON ----------------------------------------------------------------------------------------------------


def encode(document: object) -> bytes:
    """JSON with the newline Docker ends every document with."""
    return msgspec.json.encode(document) + b"\n"


def decode(raw: bytes, type: type[T]) -> T:
    """A request body as `type`.

    Raises InvalidArgument `invalid JSON: …` with path and value of the field, where it is one field's fault.
    """
    if not raw.strip():
        raise InvalidArgument("invalid JSON: got EOF while reading request body")
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"invalid JSON: {error}") from None
    except RecursionError:
        raise InvalidArgument("invalid JSON: nested too deeply") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"invalid JSON: expected an object, got {_show(document)}")
    document = _clean(document, _shape(type), "")
    try:
        return msgspec.convert(document, type)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"invalid JSON: {_explain(str(error), document)}") from None


class _Shape:
    """Where member names count: of a struct its members by folded name, of a list or map what it holds."""

    __slots__ = ("items", "members", "values")

    def __init__(self) -> None:
        self.members: dict[str, tuple[str, _Shape]] = {}
        self.items: _Shape | None = None
        self.values: _Shape | None = None


_shapes: dict[Any, _Shape] = {}


def _shape(type: Any) -> _Shape:
    if type not in _shapes:
        _shapes[type] = _shape_of(msgspec.inspect.type_info(type))
    return _shapes[type]


def _shape_of(info: msgspec.inspect.Type) -> _Shape:
    shape = _Shape()
    for part in info.types if isinstance(info, msgspec.inspect.UnionType) else (info,):
        if isinstance(part, msgspec.inspect.StructType):
            for field in part.fields:
                shape.members[field.encode_name.lower()] = (field.encode_name, _shape_of(field.type))
        elif isinstance(part, msgspec.inspect.ListType):
            shape.items = _shape_of(part.item_type)
        elif isinstance(part, msgspec.inspect.DictType):
            shape.values = _shape_of(part.value_type)
    return shape


def _clean(value: Any, shape: _Shape | None, path: str) -> Any:
    """Without nulls, members named as we name them (Go takes any case), unsigned numbers checked."""
    if isinstance(value, dict):
        members = shape.members if shape else {}
        found: dict[str, Any] = {}
        for key, member in value.items():
            if member is None:
                continue
            name, inner = members.get(key.lower(), (key, shape.values if shape else None))
            if name != key and name in value:
                continue  # the exact spelling wins
            where = f"{path}.{name}" if path else name
            kind = _UNSIGNED.get(name) if members else None
            if kind and isinstance(member, int) and not 0 <= member < _LIMIT[kind]:
                raise InvalidArgument(
                    f"invalid JSON: json: cannot unmarshal number {member} into field {where} of type {kind}"
                )
            found[name] = _clean(member, inner, where)
        return found
    if isinstance(value, list):
        inner = shape.items if shape else None
        return [_clean(member, inner, f"{path}[{i}]") for i, member in enumerate(value)]
    return value


def _explain(message: str, document: Any) -> str:
    """msgspec's message turned round: field first, then what is wrong, then the value as sent."""
    match = _AT.match(message)
    assert match  # the pattern matches any text
    path = (match["path"] or "$")[1:]
    what = match["what"].replace("`", "")
    value, sent = document, path.replace("[...]", "") == path
    for key, index in _STEP.findall(path):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            sent = False
            break
    field = path.lstrip(".") or "document"
    what = what[:1].lower() + what[1:]
    return f"{field}: {what} ({_show(value)})" if sent and path else f"{field}: {what}"


def _show(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


# -- query and headers ---------------------------------------------------------------------------------------


def flag(text: str) -> bool:
    """Docker's truth: anything but "", 0, no, false, none (moby httputils.BoolValue)."""
    return text.strip().lower() not in FALSE_WORDS


def filters(raw: str) -> dict[str, list[str]]:
    """`filters=`: `{"key":{"value":true}}` (docker CLI) or `{"key":["value"]}` (docker-py).

    Raises InvalidArgument `invalid filter`.
    """
    if not raw:
        return {}
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidArgument("invalid filter: not JSON") from None
    if not isinstance(document, dict):
        raise InvalidArgument("invalid filter: expected an object of lists")
    found: dict[str, list[str]] = {}
    for key, values in document.items():
        if values is None:
            continue
        if not isinstance(values, (dict, list)) or not all(isinstance(v, str) for v in values):
            raise InvalidArgument(f"invalid filter '{key}': expected a list of strings")
        found[key] = list(values)
    return found


def version_number(raw: str, what: str) -> int:
    """The `version=` of an update. Raises InvalidArgument in Go's words (strconv.ParseUint)."""
    if raw.isascii() and raw.isdigit() and len(raw) < 99 and int(raw) < 2**64:
        return int(raw)
    reason = "value out of range" if raw.isascii() and raw.isdigit() else "invalid syntax"
    raise InvalidArgument(f"invalid {what} version '{raw}': strconv.ParseUint: parsing \"{raw}\": {reason}")


# -- time ----------------------------------------------------------------------------------------------------


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch as Go prints times (RFC3339Nano: no trailing zeros); 0 is Go's zero
    time."""
    if not ns:
        return ZERO_TIME
    seconds, rest = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09d}".rstrip("0") + "Z" if rest else text + "Z"


def rfc3339_padded(ns: int) -> str:
    """All nine digits, as the time in front of a log line (moby jsonmessage.RFC3339NanoFixed)."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def parse_time(text: str, name: str) -> int:
    """`since`/`until`: Unix seconds with up to nine decimals, or RFC 3339. 0 for "" and "0".

    Raises InvalidArgument naming the parameter.
    """
    if not text:
        return 0
    match = re.fullmatch(r"(\d{1,11})(?:\.(\d{1,9}))?", text)
    if match:
        return int(match[1]) * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))
    match = re.fullmatch(r"(.*?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text)
    try:
        if not match:
            raise ValueError
        whole = datetime.datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
        if whole.tzinfo is None:
            raise ValueError
        return int(whole.timestamp()) * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))
    except ValueError:
        raise InvalidArgument(
            f'invalid value for "{name}": {text!r}; use Unix seconds or an RFC 3339 time'
        ) from None


def tail(text: str) -> int:
    """`tail=`: a number of lines, -1 for all (also when absent). Raises InvalidArgument."""
    if text in ("", "all"):
        return -1
    try:
        return max(int(text), -1)
    except ValueError:
        raise InvalidArgument(f"invalid value for \"tail\": {text!r}; use a number or 'all'") from None
