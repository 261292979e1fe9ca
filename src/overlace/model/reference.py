"""Image references: `nginx`, `host:5000/team/app:1`, `app@sha256:…`, and their short and full forms.

Owns the grammar (distribution/reference) and the defaults people leave out: registry docker.io, path
`library/`, tag `latest`; and which registries may be spoken to without verified TLS. Pure. Must not know
registries' protocol."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

import msgspec

from overlace.model.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
OFFICIAL = "library/"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}")
_HEX = re.compile(r"[a-f0-9]{64}")


class Reference(msgspec.Struct, frozen=True):
    domain: str  # registry, host[:port]
    path: str  # repository within it
    tag: str = ""
    digest: str = ""  # algorithm:hex

    @property
    def name(self) -> str:
        """Domain and path, in full."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as people write it: without docker.io and library/."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        short = self.path.removeprefix(OFFICIAL)
        return short if "/" not in short else self.path

    @property
    def familiar_tag(self) -> str:
        """Familiar name and tag; empty without a tag."""
        return f"{self.familiar_name}:{self.tag}" if self.tag else ""

    @property
    def familiar(self) -> str:
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def pinned(self) -> bool:
        return bool(self.digest)

    def with_default_tag(self) -> Reference:
        """With tag `latest` when there is neither tag nor digest."""
        return self if self.tag or self.digest else msgspec.structs.replace(self, tag="latest")

    def with_digest(self, digest: str) -> Reference:
        return msgspec.structs.replace(self.with_default_tag(), digest=digest)


def parse_reference(text: str) -> Reference:
    """Raises InvalidArgument, in Docker's words (distribution/reference)."""
    if _HEX.fullmatch(text):
        raise InvalidArgument(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"invalid reference format: {text!r} has no valid digest after @")
    if digest.startswith("sha256:") and not _HEX.fullmatch(digest[7:]):
        raise InvalidArgument(f"invalid reference format: {digest!r} is not 64 hexadecimal digits")
    head, slash, tail = rest.rpartition("/")
    tail, colon, tag = tail.partition(":")
    rest = head + slash + tail
    if colon and not _TAG.fullmatch(tag):
        raise InvalidArgument(f"invalid reference format: {text!r} has an invalid tag")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        domain, path = first, remainder
    else:
        domain, path = DEFAULT_DOMAIN, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = OFFICIAL + path
    if path != path.lower():
        raise InvalidArgument(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain):
        raise InvalidArgument("invalid reference format")
    if len(path) > 255:
        raise InvalidArgument("repository name must not be more than 255 characters")
    return Reference(domain, path, tag, digest)


def is_insecure(domain: str, insecure: Collection[str]) -> bool:
    """Whether a registry may go without verified TLS: one on the loopback, or among `insecure` (host, host:port or a
    network in CIDR form), as Docker's daemon holds.
    """
    host = domain.rsplit(":", 1)[0] if not domain.endswith("]") else domain
    if domain in insecure or host in insecure or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or any(address in network for network in map(_network, insecure) if network)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
