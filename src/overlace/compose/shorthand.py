"""The short spellings of compose: durations, sizes, ports, volumes, commands. Pure text to values.

Owns their grammars, as the docker CLI has them (time.ParseDuration, docker/go-units, go-connections/nat,
cli/compose/loader). Each raises BadValue with a sentence that says what would be right. Must not know the tree.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from overlace.model.specs import PortConfig

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKmMgGtTpP])?[iI]?[bB]?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


class BadValue(ValueError):
    """What is wrong with a value, and what to write instead."""


def parse_duration(text: str) -> int:
    """`1m30s` in nanoseconds."""
    whole = text.strip()
    if whole == "0":
        return 0
    at, total = 0, Decimal(0)
    sign = -1 if whole.startswith("-") else 1
    body = whole.lstrip("+-")
    while at < len(body):
        match = _DURATION.match(body, at)
        if match is None:
            break
        total += Decimal(match[1].rstrip(".") or "0") * _UNITS[match[2]]
        at = match.end()
    if not body or at < len(body):
        raise BadValue(f'"{text}" is not a duration; write it with units, like 10s, 1m30s or 500ms')
    return sign * int(total)


def parse_size(text: str) -> int:
    """`50M` in bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadValue(f'"{text}" is not a size; write bytes, or a number with k, m or g, like 512m')
    return int(Decimal(match[1]) * 1024 ** _POWERS[(match[2] or "").lower()])


def parse_cpus(text: str) -> int:
    """`0.5` in billionths of a CPU."""
    try:
        nano = Decimal(text) * 10**9
    except InvalidOperation:
        raise BadValue(f'"{text}" is not a number of CPUs; write one like 0.5') from None
    if not nano.is_finite() or nano != int(nano) or nano < 0:
        raise BadValue(f'"{text}" is not a number of CPUs; write one like 0.5, with at most nine decimals')
    return int(nano)


def parse_command(text: str) -> list[str]:
    """Words as a shell would split them."""
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise BadValue(f"{error}: {text}") from None


# -- ports --


def port_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) < 65536:
        raise BadValue(f'"{text}" is not a port; a port is a number from 1 to 65535')
    return int(text)


def _ports(text: str) -> range:
    first, dash, last = text.partition("-")
    start = port_number(first)
    end = port_number(last) if dash else start
    if end < start:
        raise BadValue(f'the range "{text}" ends before it begins')
    return range(start, end + 1)


def split_port(text: str) -> tuple[str, str, str, str]:
    """`[ip:][published:]target[/protocol]` in its parts: (ip, published, target, protocol)."""
    rest, _, protocol = text.strip().partition("/")
    head, _, target = rest.rpartition(":")
    ip, published = "", head
    if head.startswith("["):
        ip, _, published = head[1:].partition("]")
        published = published.removeprefix(":")
    elif ":" in head:
        ip, _, published = head.rpartition(":")
    return ip, published, target, protocol.lower() or "tcp"


def parse_port(text: str) -> tuple[list[PortConfig], str]:
    """The ports a short spelling stands for, and the address it wanted to listen on ("" for all)."""
    ip, published, target, protocol = split_port(text)
    if protocol not in ("tcp", "udp", "sctp"):
        raise BadValue(f'"{protocol}" is not a protocol; write tcp or udp')
    inside = _ports(target)
    if not published:
        return [PortConfig(protocol=protocol, target_port=port) for port in inside], ip
    outside = _ports(published)
    if len(inside) == 1 and len(outside) > 1:  # as the docker CLI has it: each of them leads to the one
        inside = range(inside.start, inside.start + 1)
        pairs = [(inside.start, port) for port in outside]
    elif len(inside) != len(outside):
        raise BadValue(
            f'"{text}": {len(outside)} published ports for {len(inside)} of the container; give as many'
        )
    else:
        pairs = list(zip(inside, outside, strict=True))
    return [PortConfig(protocol=protocol, target_port=i, published_port=o) for i, o in pairs], ip


# -- volumes --


@dataclass(frozen=True, slots=True)
class ShortVolume:
    type: str  # bind | volume
    source: str
    target: str
    read_only: bool = False
    no_copy: bool = False
    propagation: str = ""
    ignored: tuple[str, ...] = ()  # options with no meaning here


def parse_volume(text: str) -> ShortVolume:
    """`[source:]target[:options]`; a source that looks like a path is a bind mount."""
    parts = _volume_parts(text)
    if len(parts) == 1:
        return ShortVolume("volume", "", parts[0])
    source, target, *options = parts
    read_only = no_copy = False
    propagation, ignored = "", []
    for option in options[0].split(",") if options else []:
        match option:
            case "ro" | "readonly":
                read_only = True
            case "rw":
                read_only = False
            case "nocopy":
                no_copy = True
            case _ if option in _PROPAGATIONS:
                propagation = option
            case _:
                ignored.append(option)
    kind = "bind" if is_path(source) else "volume"
    return ShortVolume(kind, source, target, read_only, no_copy, propagation, tuple(ignored))


def _volume_parts(text: str) -> list[str]:
    if not text:
        raise BadValue("a volume is empty; write [source:]target[:options]")
    if len(text) <= 2:
        return [text]
    parts, current = [], ""
    for char in text:
        if char == ":" and not (len(current) == 1 and current.isalpha()):
            parts.append(current)
            current = ""
        else:
            current += char
    parts.append(current)
    if not all(parts):
        raise BadValue(f'"{text}": nothing stands between two colons; write [source:]target[:options]')
    if len(parts) > 3:
        raise BadValue(f'"{text}" has too many colons; write [source:]target[:options]')
    return parts


def is_path(source: str) -> bool:
    """Whether a volume's source names a place on the host, not a volume (Windows paths and pipes too)."""
    return source[:1] in (".", "/", "~") or source.startswith("\\\\") or bool(re.match(r"[A-Za-z]:", source))


def is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\\\")) or bool(re.match(r"[A-Za-z]:[\\/]", path))


def short_tmpfs(text: str) -> tuple[str, dict[str, str]]:
    """`/run:size=64m,mode=1770`: the target and its options."""
    target, _, options = text.partition(":")
    return target, dict(_pair(option) for option in options.split(",") if option)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value
