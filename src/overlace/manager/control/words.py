"""Words and patterns the checks of specs share. Must not decide anything."""

from __future__ import annotations

import re

from overlace.model.errors import Unimplemented

ABSOLUTE = re.compile(r"(?:/|[A-Za-z]:[\\/])")  # a path in a Linux or a Windows container


def unsupported(field: str, why: str) -> Unimplemented:
    return Unimplemented(f"{field} is not supported yet: {why}")
