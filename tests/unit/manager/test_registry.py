"""The resolver against a registry that answers over HTTP as the distribution spec says, well and badly."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from overlace.manager.registry import Resolver
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError, Unauthenticated, Unavailable
from overlace.runtime.base import Platform, RegistryAuth

INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


class Registry:
    """One registry on the loopback. `guard`: none, basic or bearer."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.guard = ""
        self.delay = 0.0
        self.requests: list[str] = []
        self.port = 0
        self.fail = 0

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, tag: str, document: dict[str, Any], kind: str = INDEX) -> str:
        body = json.dumps(document).encode()
        self.manifests[tag] = self.manifests[digest_of(body)] = body, kind
        return digest_of(body)

    def image(self, tag: str, config: dict[str, Any]) -> str:
        body = json.dumps(config).encode()
        self.blobs[digest_of(body)] = body
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": digest_of(body)}}
        return self.put(tag, document, MANIFEST)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        await asyncio.sleep(self.delay)
        if request.path == "/token":
            return self._token(request)
        refused = self._refuse(request)
        if refused is not None:
            return refused
        if self.fail:
            return web.Response(status=self.fail)
        _, _, rest = request.path.partition("/v2/team/app/")
        what, _, name = rest.partition("/")
        if what == "manifests" and name in self.manifests:
            body, kind = self.manifests[name]
            assert kind in request.headers["Accept"]
            return web.Response(body=body, headers={"Content-Type": kind})
        if what == "blobs" and name in self.blobs:
            return web.Response(body=self.blobs[name])
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return web.json_response(error, status=404)

    def _refuse(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        error = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        if self.guard == "basic" and given != "Basic " + base64.b64encode(b"a:b").decode():
            return web.json_response(error, status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if self.guard == "bearer" and given != "Bearer good":
            challenge = f'Bearer realm="http://{self.name}/token",service="reg, with comma",'
            challenge += 'scope="repository:team/app:pull"'
            return web.json_response(error, status=401, headers={"WWW-Authenticate": challenge})
        return None

    def _token(self, request: web.Request) -> web.Response:
        assert request.query["service"] == "reg, with comma"
        assert request.query["scope"] == "repository:team/app:pull"
        if request.headers.get("Authorization") != "Basic " + base64.b64encode(b"a:b").decode():
            return web.json_response({"errors": [{"code": "DENIED", "message": "who are you"}]}, status=401)
        return web.json_response({"access_token": "good"})


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    made = Registry()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    made = Resolver(timeout=1.0)
    yield made
    await made.close()


LIST = {
    "schemaVersion": 2,
    "mediaType": INDEX,
    "manifests": [
        {"platform": {"os": "linux", "architecture": "amd64"}},
        {"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
        {"platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.2527"}},
        {"platform": {"os": "unknown", "architecture": "unknown"}},
        {
            "platform": {"os": "linux", "architecture": "amd64"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        },
    ],
}


async def test_an_index(registry: Registry, resolver: Resolver) -> None:
    digest = registry.put("1", LIST)
    found = await resolver.inspect(f"{registry.name}/team/app:1")
    assert (found.digest, found.media_type, found.size) == (digest, INDEX, len(json.dumps(LIST)))
    assert found.platforms == (
        Platform("linux", "amd64"),
        Platform("linux", "arm", "", "v7"),
        Platform("windows", "amd64", "10.0.20348.2527"),
    )


async def test_a_single_image_says_its_platform_in_its_config(registry: Registry, resolver: Resolver) -> None:
    config = {"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"}
    digest = registry.image("latest", config)
    found = await resolver.inspect(f"{registry.name}/team/app")
    assert found.digest == digest
    assert found.platforms == (Platform("windows", "amd64", "10.0.17763.1"),)


async def test_by_digest_and_a_registry_that_lies(registry: Registry, resolver: Resolver) -> None:
    digest = registry.put("1", LIST)
    assert (await resolver.inspect(f"{registry.name}/team/app:gone@{digest}")).digest == digest
    other = "sha256:" + "0" * 64
    registry.manifests[other] = registry.manifests["1"]
    with pytest.raises(Unavailable, match="answered something else"):
        await resolver.inspect(f"{registry.name}/team/app@{other}")


async def test_not_there(registry: Registry, resolver: Resolver) -> None:
    with pytest.raises(
        NotFound, match=r"manifest for .*team/app:9 not found: manifest_unknown: manifest unknown"
    ):
        await resolver.inspect(f"{registry.name}/team/app:9")


@pytest.mark.parametrize("guard", ["basic", "bearer"])
async def test_credentials(registry: Registry, resolver: Resolver, guard: str) -> None:
    registry.guard = guard
    registry.put("1", LIST)
    with pytest.raises(
        Unauthenticated, match=r"pull access denied for .*team/app, repository does not exist or may"
    ):
        await resolver.inspect(f"{registry.name}/team/app:1")
    with pytest.raises(Unauthenticated):
        await resolver.inspect(f"{registry.name}/team/app:1", RegistryAuth("a", "wrong"))
    found = await resolver.inspect(f"{registry.name}/team/app:1", RegistryAuth("a", "b"))
    assert found.platforms


async def test_a_registry_that_hangs_is_given_up_and_remembered(registry: Registry) -> None:
    registry.delay = 30
    now = 0.0
    resolver = Resolver(timeout=0.1, clock=lambda: now)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
        await resolver.inspect(f"{registry.name}/team/app:1")
    assert loop.time() - began < 2
    asked = len(registry.requests)
    with pytest.raises(Unavailable, match="did not answer"):
        await resolver.inspect(f"{registry.name}/team/other:1")
    assert len(registry.requests) == asked, "the next service of a stack does not wait again"
    now, registry.delay = 60.0, 0.0
    registry.put("1", LIST)
    assert (await resolver.inspect(f"{registry.name}/team/app:1")).platforms
    await resolver.close()


async def test_nobody_listens(resolver: Resolver) -> None:
    with pytest.raises(Unavailable, match=r"registry 127\.0\.0\.1:1 cannot be reached: Connection refused$"):
        await resolver.inspect("127.0.0.1:1/team/app")


async def test_answers_are_remembered_for_a_while(registry: Registry) -> None:
    now = 0.0
    resolver = Resolver(clock=lambda: now)
    registry.put("1", LIST)
    name = f"{registry.name}/team/app:1"
    first, second = await asyncio.gather(resolver.inspect(name), resolver.inspect(name))
    assert first == second
    assert registry.requests.count("/v2/team/app/manifests/1") == 1, "asked once for two at the same time"
    changed = registry.put("1", {**LIST, "annotations": {"n": "2"}})
    assert await resolver.inspect(name) == first
    now = 100.0
    assert (await resolver.inspect(name)).digest == changed
    await resolver.close()


@pytest.mark.parametrize(
    "body,kind,words",
    [
        (b"hello", INDEX, "not a JSON object"),
        (b"[]", INDEX, "not a JSON object"),
        (b'{"schemaVersion": 1}', MANIFEST, "names no image config"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', INDEX, "beyond all size"),
    ],
)
async def test_broken_answers(
    registry: Registry, resolver: Resolver, body: bytes, kind: str, words: str
) -> None:
    registry.manifests["1"] = body, kind
    with pytest.raises(OverlaceError, match=words):
        await resolver.inspect(f"{registry.name}/team/app:1")


async def test_a_failing_registry(registry: Registry, resolver: Resolver) -> None:
    registry.fail = 503
    with pytest.raises(Unavailable, match="answered 503"):
        await resolver.inspect(f"{registry.name}/team/app:1")


async def test_no_reference(resolver: Resolver) -> None:
    with pytest.raises(InvalidArgument):
        await resolver.inspect("No Image")
