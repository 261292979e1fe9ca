"""Log drivers and their options: what they mean, and which of them hosts honour.

Pure. Owns the grammar (moby daemon/logger/jsonfilelog, go-units FromHumanSize). Must not know who keeps logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

import msgspec

from overlace.model.errors import InvalidArgument, Unimplemented
from overlace.model.specs import Driver

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
# Docker's other options, with the value that asks for what is the case anyway ("" for none).
_OTHERS = {
    "compress": "false",
    "env": "",
    "env-regex": "",
    "labels": "",
    "labels-regex": "",
    "max-buffer-size": "",
    "mode": "blocking",
    "tag": "",
}
_LOCAL_OTHERS = frozenset(("compress", "max-buffer-size", "mode"))


def parse_size(text: str) -> int:
    """`10m`, `1.5GB`, `4096` in bytes; units are decimal, as go-units has them here. Raises InvalidArgument."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(f"invalid size: '{text}'")
    return int(Decimal(found[1]) * _UNITS[found[2].lower()])


def size_text(size: int) -> str:
    """Bytes in the largest unit that is exact: 10000000 -> `10m`."""
    for unit, factor in reversed(_UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


class LogChoice(msgspec.Struct, frozen=True):
    """Who keeps a container's output: `local` and `json-file` keep the same files, `none` keeps nothing."""

    driver: Literal["json-file", "local", "none"] = "json-file"
    max_size: int = 0  # bytes of one file; 0: not said
    max_files: int = 0


# moby daemon/logger/local: what is kept when nothing is said
_LOCAL = LogChoice("local", 20_000_000, 5)


def log_choice(driver: Driver | None) -> LogChoice:
    """Raises InvalidArgument for a wrong value or an option there is not, Unimplemented for a driver or an option of
    Docker's that hosts do not honour."""
    if driver is None:
        return LogChoice()
    match driver.name:
        case "" | "json-file":
            return LogChoice("json-file", *parse_log_options(driver.options))
        case "local":
            size, files = parse_log_options(driver.options, "local")
            return LogChoice("local", size or _LOCAL.max_size, files or _LOCAL.max_files)
        case "none":
            if driver.options:
                raise InvalidArgument(f"unknown log opt '{min(driver.options)}' for none log driver")
            return LogChoice("none")
        case name:
            raise Unimplemented(
                f"log driver {name} is not supported yet: hosts keep logs with json-file or local, or not at all (none)"
            )


def parse_log_options(options: Mapping[str, str], driver: str = "json-file") -> tuple[int, int]:
    """(bytes of one file, number of files) that `max-size` and `max-file` ask for; 0: not said.

    Raises InvalidArgument for a wrong value or an option there is not, Unimplemented for one of Docker's that
    hosts do not honour.
    """
    size = files = 0
    for key, value in options.items():
        if key == "max-size":
            try:
                size = parse_size(value)
            except InvalidArgument:
                size = 0
            if size <= 0:
                raise InvalidArgument(
                    f"log option max-size: '{value}' is not a size above 0; use a number with k, m or g, as in 10m"
                )
        elif key == "max-file":
            if not re.fullmatch(r"\d{1,4}", value) or int(value) < 1:
                raise InvalidArgument(
                    f"log option max-file: '{value}' is not a number of files; use 1 to 9999"
                )
            files = int(value)
        elif key not in _OTHERS or (driver == "local" and key not in _LOCAL_OTHERS):
            raise InvalidArgument(f"unknown log opt '{key}' for {driver} log driver")
        elif not _OTHERS[key] or value != _OTHERS[key]:
            raise Unimplemented(
                f"log option {key} is not supported yet: of {driver}'s options hosts honour max-size and max-file"
            )
    if size and not files and driver == "json-file":
        files = 1  # as Docker: what does not fit in one file is dropped
    return size, files
