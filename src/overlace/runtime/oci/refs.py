"""Image references as people write them, and as a registry needs them.

Pure. Must not know registries' answers or the local store.
Grammar and defaults: distribution's `reference` package (domain `docker.io`, path `library/`, tag `latest`).
"""

from __future__ import annotations

import re

import msgspec

from overlace.model.errors import InvalidArgument

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference. `tag` and `digest` may both be empty until `with_default_tag`."""

    domain: str  # `docker.io`, `registry:5000`
    path: str  # `library/busybox`
    tag: str = ""
    digest: str = ""  # `sha256:<hex>`

    @property
    def repository(self) -> str:
        """Full repository: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The repository as Docker shows it: `busybox`, `team/app`, `registry:5000/app`."""
        if self.domain != "docker.io":
            return self.repository
        return self.path.removeprefix("library/")

    @property
    def familiar_tag(self) -> str:
        return f"{self.familiar}:{self.tag}" if self.tag else ""

    def with_default_tag(self) -> Reference:
        """`latest`, unless a tag or a digest is given."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, "latest")

    def docker_source(self, digest: str = "") -> str:
        """The `docker://` name for skopeo, which takes a tag or a digest but not both: the digest wins."""
        pinned = digest or self.digest
        if pinned:
            return f"docker://{self.repository}@{pinned}"
        return f"docker://{self.repository}:{self.tag or 'latest'}"


def parse_reference(text: str) -> Reference:
    """Parse `[domain/]path[:tag][@digest]`.

    Raises InvalidArgument in Docker's words (`invalid reference format`).
    """
    rest, digest = text, ""
    if "@" in rest:
        rest, digest = rest.split("@", 1)
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgument(
                f'invalid reference format: "{text}": digest must be sha256:<64 hex digits>'
            )
    tag = ""
    head, _, last = rest.rpartition("/")
    if ":" in last:
        last, tag = last.split(":", 1)
        if not _TAG.fullmatch(tag):
            raise InvalidArgument(f'invalid reference format: "{text}": bad tag "{tag}"')
    name = f"{head}/{last}" if head else last
    if _HEX.fullmatch(name):
        raise InvalidArgument(f"invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")
    first, slash, remainder = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        domain, path = first, remainder
    else:
        domain, path = "docker.io", name
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if path != path.lower():
        raise InvalidArgument(f'invalid reference format: repository name ("{path}") must be lowercase')
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain) or len(path) > 255:
        raise InvalidArgument(f'invalid reference format: "{text}"')
    return Reference(domain, path, tag, digest)


def is_insecure(domain: str, insecure_registries: frozenset[str]) -> bool:
    """Whether a registry may be spoken to without TLS: listed, or on loopback (as Docker's daemon holds)."""
    if domain in insecure_registries:
        return True
    host = domain.rsplit(":", 1)[0] if not domain.endswith("]") else domain
    return (
        host in insecure_registries
        or host in ("localhost", "[::1]")
        or bool(re.match(r"127\.\d+\.\d+\.\d+$", host))
    )
