"""What an image is, asked of its registry: digest, size and platforms (OCI distribution spec, Docker Registry
HTTP API v2).

Owns `Resolver`: the protocol, tokens, time limits and a short memory of answers. Fetches manifests and image
configs only, never layers (the runtimes pull). Nothing here waits longer than a few seconds: a registry that
hangs is a warning to the user, not a service that cannot be created. Errors never hold credentials.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec

from overlace.model.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from overlace.model.reference import DEFAULT_DOMAIN, Reference, is_insecure, parse_reference
from overlace.runtime.base import Platform, RegistryAuth

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ACCEPT = ", ".join(_INDEXES + _MANIFESTS)
_HUB = "registry-1.docker.io"
_MOST_BYTES = 4 * 1024 * 1024  # a manifest or image config larger than this is refused, as registries do
_CHALLENGE = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Distribution(msgspec.Struct, frozen=True):
    """Of GET /distribution: what a reference names. `platforms` in the registry's order, attestations left
    out."""

    digest: str
    media_type: str
    size: int  # bytes of the manifest
    platforms: tuple[Platform, ...]


class Resolver:
    """Answers what references name. `insecure`: registries (host, host:port or CIDR) reached without verified
    TLS or over plain HTTP, besides those on the loopback. `clock`: seconds, monotonic.

    `inspect` raises InvalidArgument (no reference), NotFound, Unauthenticated, PermissionDenied, Unavailable
    (no answer within `timeout` seconds, or a broken one).
    """

    def __init__(
        self,
        insecure: Sequence[str] = (),
        *,
        timeout: float = 5.0,
        remember: float = 30.0,
        remember_failure: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._insecure = tuple(insecure)
        self._timeout = timeout
        self._remember = remember
        self._remember_failure = remember_failure
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._answers: dict[tuple[str, RegistryAuth | None], tuple[float, Distribution]] = {}
        self._silent: dict[str, tuple[float, str]] = {}  # registry -> (until, why): it did not answer lately
        self._asking: dict[tuple[str, RegistryAuth | None], asyncio.Task[Distribution]] = {}
        self._bases: dict[str, _Base] = {}  # of insecure registries: what they turned out to speak

    async def inspect(self, reference: str, auth: RegistryAuth | None = None) -> Distribution:
        ref = parse_reference(reference).with_default_tag()
        key = str(ref), auth
        until, answer = self._answers.get(key, (0.0, None))
        if answer is not None and self._clock() < until:
            return answer
        until, why = self._silent.get(ref.domain, (0.0, ""))
        if self._clock() < until:
            raise Unavailable(why)
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(ref, auth))
            asking.add_done_callback(lambda done: self._answered(key, ref, done))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _answered(
        self, key: tuple[str, RegistryAuth | None], ref: Reference, done: asyncio.Task[Distribution]
    ) -> None:
        self._asking.pop(key, None)
        if done.cancelled():
            return
        now = self._clock()
        error = done.exception()
        if error is None:
            self._answers = {k: v for k, v in self._answers.items() if v[0] > now}
            self._answers[key] = now + self._remember, done.result()
        elif isinstance(error, _Silent):
            self._silent[ref.domain] = now + self._remember_failure, error.message
            self._bases.pop(ref.domain, None)

    async def _ask(self, ref: Reference, auth: RegistryAuth | None) -> Distribution:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._fetch(ref, auth)
        except TimeoutError:
            raise _Silent(f"registry {ref.domain} did not answer within {self._timeout:g} s") from None
        except OverlaceError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            advice = ""
            if isinstance(error, aiohttp.ClientSSLError):
                advice = (
                    "; if it speaks plain HTTP or has a certificate of its own, start the daemons with"
                    f" --insecure-registry {ref.domain}"
                )
            raise _Silent(f"registry {ref.domain} cannot be reached: {_reason(error)}{advice}") from None

    async def _fetch(self, ref: Reference, auth: RegistryAuth | None) -> Distribution:
        exchange = _Exchange(self._open_session(), ref, auth, await self._base(ref.domain))
        body, headers = await exchange.get(f"manifests/{ref.digest or ref.tag}", _ACCEPT)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if ref.digest.startswith("sha256:") and ref.digest != digest:
            raise Unavailable(f"registry {ref.domain} answered something else than {ref.digest}")
        manifest = _document(body, ref)
        media_type = (
            str(manifest.get("mediaType") or headers.get("Content-Type", "")).partition(";")[0].strip()
        )
        if media_type in _INDEXES or "manifests" in manifest:
            platforms = [p for p in map(_index_platform, manifest.get("manifests") or []) if p is not None]
        elif media_type in _MANIFESTS or "config" in manifest:
            platforms = await self._config_platform(exchange, ref, manifest)
        else:
            raise InvalidArgument(
                f"{ref.familiar} is of a kind no host can run ({media_type or 'unknown'}): expected an image"
                " index or image manifest"
            )
        return Distribution(ref.digest or digest, media_type, len(body), tuple(platforms))

    async def _config_platform(
        self, exchange: _Exchange, ref: Reference, manifest: dict[str, Any]
    ) -> list[Platform]:
        digest = str((manifest.get("config") or {}).get("digest") or "")
        if not digest:
            raise Unavailable(f"registry {ref.domain}: the manifest of {ref.familiar} names no image config")
        body, _ = await exchange.get(f"blobs/{digest}", "*/*")
        if digest != "sha256:" + hashlib.sha256(body).hexdigest() and digest.startswith("sha256:"):
            raise Unavailable(f"registry {ref.domain} answered something else than {digest}")
        platform = _platform(_document(body, ref))
        return [platform] if platform is not None else []

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                headers={"User-Agent": "overlace"}, auto_decompress=True, trust_env=False
            )
        return self._session

    # -- where the registry is -----------------------------------------------------------------------------

    async def _base(self, domain: str) -> _Base:
        host = _HUB if domain == DEFAULT_DOMAIN else domain
        if not is_insecure(domain, self._insecure):
            return _Base(f"https://{host}", True)
        if domain not in self._bases:
            base = _Base(f"https://{host}", False)
            try:
                async with self._open_session().get(f"{base.url}/v2/", ssl=False, allow_redirects=False):
                    pass
            except (aiohttp.ClientConnectorSSLError, aiohttp.ServerDisconnectedError, ConnectionResetError):
                base = _Base(f"http://{host}", True)  # no TLS on that port
            except aiohttp.ClientConnectorError as error:
                if not isinstance(error.os_error, ssl.SSLError | ConnectionResetError):
                    raise
                base = _Base(f"http://{host}", True)
            self._bases[domain] = base
        return self._bases[domain]


class _Silent(Unavailable):
    """The registry itself did not answer: worth remembering for a moment."""


class _Base(msgspec.Struct, frozen=True):
    url: str
    verify: bool


class _Exchange:
    """One reference's requests to its registry: finds out how to authenticate on the first 401 and goes on
    with it."""

    def __init__(
        self, session: aiohttp.ClientSession, ref: Reference, auth: RegistryAuth | None, base: _Base
    ) -> None:
        self._session = session
        self._ref = ref
        self._auth = auth
        self._base = base
        self._authorization = ""

    async def get(self, path: str, accept: str) -> tuple[bytes, dict[str, str]]:
        for last in (False, True):
            headers = {"Accept": accept}
            if self._authorization:
                headers["Authorization"] = self._authorization
            url = f"{self._base.url}/v2/{self._ref.path}/{path}"
            async with self._session.get(url, headers=headers, ssl=self._base.verify) as response:
                if response.status == 401 and not last and not self._authorization:
                    challenges = response.headers.getall("WWW-Authenticate", [])
                    await self._authenticate(challenges)
                    continue
                if response.status != 200:
                    raise await self._refusal(response)
                return await self._read(response), dict(response.headers)
        raise AssertionError("unreachable: the second round answers or raises")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            body += chunk
            if len(body) > _MOST_BYTES:
                raise Unavailable(
                    f"registry {self._ref.domain}: {self._ref.familiar} has a manifest beyond all size"
                )
        return bytes(body)

    async def _authenticate(self, challenges: list[str]) -> None:
        for challenge in challenges:
            scheme, _, rest = challenge.strip().partition(" ")
            if scheme.lower() == "bearer":
                fields = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _CHALLENGE.finditer(rest)}
                self._authorization = f"Bearer {await self._token(fields)}"
                return
            if scheme.lower() == "basic" and self._auth is not None and self._auth.username:
                self._authorization = _basic(self._auth)
                return
        raise Unauthenticated(self._denied("no basic auth credentials"))

    async def _token(self, fields: dict[str, str]) -> str:
        realm = fields.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise Unavailable(f"registry {self._ref.domain} asks for a token without saying where to get one")
        if realm.startswith("http://") and self._base.url.startswith("https://") and self._base.verify:
            raise Unavailable(
                f"registry {self._ref.domain} sends credentials to an unencrypted address; refused"
            )
        scope = fields.get("scope") or f"repository:{self._ref.path}:pull"
        asked = {"service": fields.get("service", ""), "scope": scope}
        auth = self._auth
        request: Awaitable[aiohttp.ClientResponse]
        if auth is not None and auth.identity_token:
            form = {
                **asked,
                "grant_type": "refresh_token",
                "refresh_token": auth.identity_token,
                "client_id": "overlace",
            }
            request = self._session.post(realm, data=form, ssl=self._base.verify)
        else:
            headers = {}
            if auth is not None and auth.username:
                asked["account"] = auth.username
                headers["Authorization"] = _basic(auth)
            request = self._session.get(realm, params=asked, headers=headers, ssl=self._base.verify)
        async with await request as response:
            if response.status in (400, 401, 403):
                raise Unauthenticated(self._denied(await _words(response)))
            if response.status != 200:
                raise Unavailable(
                    f"registry {self._ref.domain}: its token service answered {response.status}"
                )
            found = _document(await self._read(response), self._ref)
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or not token:
            raise Unavailable(f"registry {self._ref.domain}: its token service gave no token")
        return token

    async def _refusal(self, response: aiohttp.ClientResponse) -> OverlaceError:
        words = await _words(response)
        ref = self._ref
        match response.status:
            case 404:
                return NotFound(f"manifest for {ref.familiar} not found: {words}")
            case 401:
                return Unauthenticated(self._denied(words))
            case 403:
                return PermissionDenied(self._denied(words))
            case 429:
                return Unavailable(f"registry {ref.domain}: too many requests: {words}")
            case status if status >= 500:
                return _Silent(f"registry {ref.domain} answered {status}: {words}")
            case status:
                return Internal(f"registry {ref.domain} answered {status} for {ref.familiar}: {words}")

    def _denied(self, words: str) -> str:
        return (
            f"pull access denied for {self._ref.familiar_name}, repository does not exist or may require"
            f" 'docker login': {words}"
        )


def _basic(auth: RegistryAuth) -> str:
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()


async def _words(response: aiohttp.ClientResponse) -> str:
    """The registry's own words for a refusal: `{"errors": [{"code", "message"}]}`, cut short."""
    body = await response.content.read(64 * 1024)
    try:
        errors = json.loads(body)["errors"]
        said = "; ".join(f"{e.get('code', '')}: {e.get('message', '')}".strip(": ").lower() for e in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        said = ""
    return said[:500] or f"status {response.status} {response.reason}"


def _document(body: bytes, ref: Reference) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unavailable(f"registry {ref.domain}: its answer for {ref.familiar} is not a JSON object")
    return found


def _index_platform(entry: Any) -> Platform | None:
    if not isinstance(entry, dict):
        return None
    annotations = entry.get("annotations") or {}
    if isinstance(annotations, dict) and "vnd.docker.reference.type" in annotations:
        return None  # an attestation, not an image
    found = entry.get("platform")
    return _platform(found) if isinstance(found, dict) else None


def _platform(found: dict[str, Any]) -> Platform | None:
    """From an index entry's `platform` or an image config; both name the members alike."""
    os, architecture = str(found.get("os") or ""), str(found.get("architecture") or "")
    if os in ("", "unknown"):
        return None
    return Platform(os, architecture, str(found.get("os.version") or ""), str(found.get("variant") or ""))


def _reason(error: BaseException) -> str:
    """Short words for a connection that failed, without the library's wrapping."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(inner, OSError) and (inner.errno or 0) > 0:
        return os.strerror(inner.errno or 0)  # asyncio puts its own words around it
    return str(inner) or type(inner).__name__
