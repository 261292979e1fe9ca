"""Talking to registries, by way of skopeo.

Owns the command lines, the credentials' way to skopeo (an anonymous memory file: never on disk, never in an
argument list) and the telling of failures in the registry's own words. Must not know the local image store.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from overlace.model.errors import Internal, NotFound, OverlaceError, Unavailable
from overlace.model.reference import Reference, is_insecure
from overlace.runtime.base import RegistryAuth
from overlace.runtime.oci.process import Finished, require_tool, run_tool

_INSPECT_TIMEOUT = 60.0
_FATAL = re.compile(r'level=(?:fatal|error) msg=("(?:[^"\\]|\\.)*"|\S+)')
_UNKNOWN = (
    "manifest unknown",
    "name unknown",
    "repository name not known",
    "name invalid",
    "status code 404",
    "404 (not found)",
)


def registry_words(stderr: str) -> str:
    """The message within skopeo's log line, without its wrapping about image names. Pure."""
    found = _FATAL.findall(stderr)
    words = found[-1] if found else (stderr.strip().splitlines() or ["no message"])[-1]
    if words.startswith('"'):
        try:
            words = json.loads(words)
        except ValueError:
            words = words.strip('"')
    words = re.sub(
        r'^(?:Error (?:parsing|reading) (?:image name|manifest) )?"?docker://[^"]*"?: ?', "", words
    )
    words = re.sub(r'^Error parsing image name "docker://[^"]*": ?', "", words)
    return re.sub(
        r"^(?:initializing source docker://\S+: |copying system image from manifest list: )+", "", words
    )


def pull_error(name: str, stderr: str) -> OverlaceError:
    """What a failed call to skopeo means for the person who asked for image `name`. Pure."""
    words = registry_words(stderr)
    lower = words.lower()
    if any(sign in lower for sign in _UNKNOWN):
        return NotFound(f"No such image: {name} ({words})")
    if "no space left" in lower:
        return Unavailable(f"pull of {name}: {words}: free disk space on this host's data root")
    return Unavailable(f"pull of {name}: {words}")


def source_name(reference: Reference, digest: str = "") -> str:
    """The `docker://` name of an image, which has a tag or a digest but not both: the digest wins. Pure."""
    pinned = digest or reference.digest
    return (
        f"docker://{reference.name}@{pinned}"
        if pinned
        else f"docker://{reference.name}:{reference.tag or 'latest'}"
    )


def auth_document(domain: str, auth: RegistryAuth | None) -> bytes:
    """An authfile (containers-auth.json(5)) with the given credentials, or with none at all. Pure."""
    auths: dict[str, dict[str, str]] = {}
    if auth is not None and (auth.username or auth.identity_token):
        user = auth.username or "<token>"
        entry = {"auth": base64.b64encode(f"{user}:{auth.password}".encode()).decode()}
        if auth.identity_token:
            entry["identitytoken"] = auth.identity_token
        auths[domain] = entry
    return json.dumps({"auths": auths}).encode()


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("registry-auth", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


class Skopeo:
    """Three verbs on a remote image; each raises as `pull_error` says, Unavailable when skopeo is not
    installed.
    """

    def __init__(self, insecure_registries: frozenset[str]) -> None:
        self._insecure = insecure_registries

    async def manifest(
        self, reference: Reference, digest: str, name: str, auth: RegistryAuth | None
    ) -> bytes:
        """The raw manifest or index; its digest is the sha256 of these bytes (checked when `digest` or the
        reference pins one).
        """
        data = (await self._inspect(["--raw"], reference, digest, name, auth)).stdout
        pinned = digest or reference.digest
        actual = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if pinned and pinned != actual:
            raise Unavailable(
                f"pull of {name}: the registry sent a manifest with digest {actual} for {pinned}"
            )
        return data

    async def config(self, reference: Reference, digest: str, name: str, auth: RegistryAuth | None) -> bytes:
        """The raw image config of a single manifest, Docker's extensions (Healthcheck) included."""
        return (await self._inspect(["--raw", "--config"], reference, digest, name, auth)).stdout

    async def copy(
        self, reference: Reference, digest: str, name: str, layout: Path, auth: RegistryAuth | None
    ) -> None:
        """Copy the manifest `digest` with its blobs into the OCI layout at `layout`, tagged `image`."""
        insecure = is_insecure(reference.domain, self._insecure)
        options = ["copy", "--quiet", f"--src-tls-verify={_flag(not insecure)}"]
        await self._run(
            options,
            [source_name(reference, digest), f"oci:{layout}:image"],
            "--src-authfile",
            reference,
            name,
            auth,
            None,
        )

    async def _inspect(
        self, options: list[str], reference: Reference, digest: str, name: str, auth: RegistryAuth | None
    ) -> Finished:
        insecure = is_insecure(reference.domain, self._insecure)
        options = ["inspect", *options, f"--tls-verify={_flag(not insecure)}"]
        return await self._run(
            options, [source_name(reference, digest)], "--authfile", reference, name, auth, _INSPECT_TIMEOUT
        )

    async def _run(
        self,
        options: list[str],
        operands: list[str],
        auth_option: str,
        reference: Reference,
        name: str,
        auth: RegistryAuth | None,
        timeout: float | None,
    ) -> Finished:
        tool = require_tool("skopeo")
        with _memory_file(auth_document(reference.domain, auth)) as descriptor:
            argv = [
                tool,
                "--insecure-policy",
                *options,
                auth_option,
                f"/proc/self/fd/{descriptor}",
                *operands,
            ]
            try:
                finished = await run_tool(argv, pass_fds=(descriptor,), timeout=timeout)
            except Internal as error:
                raise Unavailable(f"pull of {name}: {error.message}") from error
        if finished.code != 0:
            raise pull_error(name, finished.stderr)
        return finished


def _flag(value: bool) -> str:
    return "true" if value else "false"
