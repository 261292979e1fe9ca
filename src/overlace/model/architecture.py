"""Names of processor architectures: kernels', people's and the ones images use. Pure."""

from __future__ import annotations

_FOLD = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
}


def fold_architecture(name: str) -> str:
    """The OCI name of an architecture whatever it is called: `x86_64` -> `amd64`, `aarch64` -> `arm64`."""
    lower = name.lower()
    return _FOLD.get(lower, lower)
