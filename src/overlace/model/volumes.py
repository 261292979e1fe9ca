"""What a volume may be called and what the driver `local` may be told.

Owns those rules (moby volume/local/local.go, local_unix.go; volume/names). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from overlace.model.errors import InvalidArgument, Unimplemented

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_GOES_WITH = {"device": ("type",), "type": ("device",), "o": ("device", "type")}


def check_volume_name(name: str) -> None:
    """Raises InvalidArgument."""
    if len(name) > 255:  # it becomes a folder's name
        raise InvalidArgument(
            f'"{name[:40]}…" is too long for a local volume name: use 255 characters or fewer'
        )
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f'"{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed.'
            " If you intended to pass a host directory, use absolute path"
        )


def check_volume_options(options: Mapping[str, str]) -> None:
    """Raises InvalidArgument for what Docker's driver `local` does not take, Unimplemented for a quota."""
    for key in options:
        if key == "size":
            raise Unimplemented(
                "volume option size is not supported yet: folders of hosts have no quota; leave it out"
            )
        if key not in _GOES_WITH:
            raise InvalidArgument(f'invalid option: "{key}"')
    for key, needed in _GOES_WITH.items():
        for other in needed:
            if options.get(key) and not options.get(other):
                raise InvalidArgument(f'missing required option: "{other}"')
