"""What every client of the API meets: versions, headers, errors, and the routes docker CLI does not show well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from overlace.api.backend import ContainerAddress, LocalSwarm
from overlace.api.server import ApiServer
from overlace.manager.logs import LogRecord
from overlace.model.errors import Conflict, InvalidArgument
from overlace.model.objects import Network, Task
from overlace.model.specs import NetworkSpec, PortConfig
from overlace.model.volumes import ANONYMOUS_LABEL
from overlace.runtime.base import LogLine, Mount, StoredVolume, Volume

from .conftest import Api
from .doubles import (
    DIGEST,
    NODE,
    FakeBackend,
    FakeRuntime,
    ResolvedImage,
    container,
    image,
    overlay_here,
    until,
)

WORKER = LocalSwarm(state="active", node_id=NODE)
SERVICE = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "registry:5000/shop/web:1"}},
    "Mode": {"Replicated": {"Replicas": 2}},
}


async def tasks_of(api: Api, name: str, count: int) -> list[Any]:
    for _ in range(100):
        _, tasks, _ = await api("GET", "/tasks", params={"filters": f'{{"service":["{name}"]}}'})
        if len(tasks) == count:
            return list(tasks)
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} has no {count} tasks")


# -- protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/_ping", "/v1.41/_ping", "/v1.24/_ping"])
async def test_ping(api: Api, backend: FakeBackend, path: str) -> None:
    status, body, headers = await api("GET", path)
    assert (status, body) == (200, b"OK")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Api-Version"] == "1.51" and headers["Ostype"] == "linux"
    assert headers["Server"].startswith("Overlace/") and headers["Server"].endswith("(linux)")
    assert headers["Swarm"] == "inactive" and "no-cache" in headers["Cache-Control"]
    backend.state = WORKER
    status, body, headers = await api("HEAD", path)
    assert (status, body, headers["Content-Length"], headers["Swarm"]) == (200, b"", "0", "active/worker")


async def test_why_answers_for_services_and_tasks_and_only_on_a_manager(
    swarm: Api, backend: FakeBackend
) -> None:
    await swarm("POST", "/services/create", SERVICE)
    await tasks_of(swarm, "web", 2)
    for ref, kind in (("web", "service"), ("web.2", "task")):
        status, body, _ = await swarm("GET", "/overlace/v1/why", params={"of": ref})
        assert (status, body["kind"], body["name"]) == (200, kind, ref)
    status, body, _ = await swarm("GET", "/overlace/v1/why", params={"of": "nosuch"})
    assert (status, body["message"].split(";")[0]) == (404, "no service or task nosuch")
    status, body, _ = await swarm("GET", "/overlace/v1/why")
    assert status == 400
    backend.manager, backend.state = None, WORKER
    status, body, _ = await swarm("GET", "/overlace/v1/why", params={"of": "web"})
    assert status == 503 and "not a swarm manager" in body["message"]


async def test_versions_out_of_range(api: Api) -> None:
    assert (await api("GET", "/v9.99/info"))[:2] == (
        400,
        {"message": "client version 9.99 is too new. Maximum supported API version is 1.51"},
    )
    status, body, headers = await api("GET", "/v1.10/info")
    assert status == 400 and "client version 1.10 is too old" in body["message"]
    assert headers["Api-Version"] == "1.51"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nosuchpath"),
        ("PUT", "/info"),
        ("GET", "/v1.41"),
        ("GET", "/"),
        ("POST", "/services/x/y"),
        ("GET", "//info"),
    ],
)
async def test_unknown_path_or_method(api: Api, method: str, path: str) -> None:
    assert (await api(method, path))[:2] == (404, {"message": "page not found"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/services"),
        ("GET", "/nodes"),
        ("GET", "/tasks/x"),
        ("GET", "/swarm"),
        ("GET", "/secrets"),
        ("DELETE", "/configs/x"),
        ("GET", "/swarm/unlockkey"),
        ("GET", "/distribution/a/b:1/json"),
    ],
)
async def test_nodes_that_are_no_managers_say_what_to_do(
    api: Api, backend: FakeBackend, method: str, path: str
) -> None:
    status, body, _ = await api(method, path)
    assert status == 503 and "docker swarm init" in body["message"]
    backend.state = WORKER
    status, body, _ = await api(method, path)
    assert status == 503 and body["message"].startswith(
        "This node is not a swarm manager. Worker nodes can't be used"
    )


async def test_bodies_are_bounded(swarm: Api) -> None:
    status, body, _ = await swarm(
        "POST", "/secrets/create", b'{"Name":"a","Data":"' + b"A" * (5 << 20) + b'"}'
    )
    assert status == 413 and "at most" in body["message"]
    status, body, _ = await swarm("POST", "/secrets/create", {"Name": "big", "Data": "AAAA" * 170_668})
    assert status == 400 and "less than 512000 bytes" in body["message"]


async def test_a_body_must_be_json(swarm: Api) -> None:
    status, body, _ = await swarm(
        "POST", "/services/create", b"a=b", headers={"Content-Type": "application/x-www-form"}
    )
    assert status == 400 and "must be 'application/json'" in body["message"]
    status, body, _ = await swarm("POST", "/services/create", b"{bad}")
    assert status == 400 and body["message"].startswith("invalid JSON: ")


async def test_an_error_inside_is_a_500_and_the_server_goes_on(api: Api, backend: FakeBackend) -> None:
    async def broken() -> list[Any]:
        raise ZeroDivisionError("oops")

    backend.runtime.list = broken  # type: ignore[method-assign]
    status, body, _ = await api("GET", "/containers/json")
    assert status == 500 and "ZeroDivisionError: oops" in body["message"]
    assert (await api("GET", "/_ping"))[0] == 200


# -- a change is not stopped half-way, a stream is ----------------------------------------------------------------


async def test_a_client_that_goes_away_does_not_stop_a_change(server: str, backend: FakeBackend) -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    go_on = asyncio.Event()

    async def slow(request: Any) -> str:
        started.set()
        await go_on.wait()
        ended.set()
        return NODE

    backend.swarm_init = slow  # type: ignore[method-assign]
    _, writer = await asyncio.open_unix_connection(server)
    body = b'{"ListenAddr":"0.0.0.0"}'
    writer.write(b"POST /swarm/init HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await started.wait()
    writer.close()
    await asyncio.sleep(0.05)
    go_on.set()
    await asyncio.wait_for(ended.wait(), 5)


async def test_following_ends_with_its_client(swarm: Api, backend: FakeBackend) -> None:
    manager = backend.manager
    assert manager is not None
    backend.runtime.put(container())
    await swarm("POST", "/services/create", SERVICE)
    for path, counter in (
        ("/services/web/logs?stdout=1&follow=1", lambda: manager.following),
        ("/containers/web.1.task/logs?stdout=1&follow=1", lambda: backend.runtime.following),
        ("/events", lambda: None),
    ):
        tasks = len(asyncio.all_tasks())
        async with swarm.session.get(f"http://docker{path}") as response:
            assert response.status == 200
            await until(lambda count=counter: count() in (1, None))
            response.close()
        await until(lambda count=counter: count() in (0, None))
        await until(lambda most=tasks: len(asyncio.all_tasks()) <= most)


async def test_closing_ends_streams(backend: FakeBackend, tmp_path: Path) -> None:
    server = ApiServer(backend)
    path = tmp_path / "d.sock"
    await server.start([f"unix://{path}"])
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://docker/events") as response,
    ):
        assert response.status == 200
        await asyncio.wait_for(server.close(), 10)
    assert not path.exists()


# -- sockets -----------------------------------------------------------------------------------------------------


async def test_hundreds_of_clients_at_once_are_not_refused(server: str) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(500):  # all before the server has a turn
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(server)


async def test_the_socket_is_for_its_group_only(server: str) -> None:
    assert stat.S_IMODE(os.stat(server).st_mode) == 0o660


async def test_a_stale_socket_is_replaced_a_living_one_is_not(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    first, second = ApiServer(backend), ApiServer(backend)
    await first.start([f"unix://{path}"])
    with pytest.raises(Conflict, match="another daemon answers there"):
        await second.start([f"unix://{path}"])
    assert path.exists()
    await first.close()
    path.write_text("mine")
    with pytest.raises(Conflict, match="no socket"):
        await second.start([f"unix://{path}"])
    assert path.read_text() == "mine"


async def test_tcp_when_asked(backend: FakeBackend) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ApiServer(backend)
    await server.start([f"tcp://127.0.0.1:{port}"])
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/_ping") as response,
        ):
            assert await response.text() == "OK"
    finally:
        await server.close()


# -- swarm objects -----------------------------------------------------------------------------------------------


async def test_services(swarm: Api) -> None:
    status, body, _ = await swarm("POST", "/services/create", SERVICE)
    assert status == 201 and set(body) == {"ID", "Warnings"}
    id = body["ID"]
    await tasks_of(swarm, "web", 2)
    _, found, _ = await swarm("GET", f"/services/{id[:8]}")
    assert found["ID"] == id and found["Spec"]["TaskTemplate"]["Runtime"] == "container"
    _, listed, _ = await swarm("GET", "/services?status=true")
    assert listed[0]["ServiceStatus"] == {"RunningTasks": 2, "DesiredTasks": 2, "CompletedTasks": 0}
    _, listed, _ = await swarm("GET", "/v1.40/services?status=true")
    assert "ServiceStatus" not in listed[0]
    version = found["Version"]["Index"]
    assert (await swarm("POST", f"/services/{id}/update", SERVICE))[1] == {
        "message": "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax"
    }
    status, body, _ = await swarm("POST", f"/services/{id}/update?version={version + 1}", SERVICE)
    assert (status, body["message"]) == (500, "rpc error: code = Unknown desc = update out of sequence")
    spec = found["Spec"] | {"Labels": {"a": "b"}}
    status, body, _ = await swarm("POST", f"/services/{id}/update?version={version}", spec)
    assert (status, "Warnings" in body) == (200, True)
    status, body, _ = await swarm("DELETE", "/services/web")
    assert (status, body) == (200, b"")
    assert (await swarm("DELETE", "/services/web"))[:2] == (404, {"message": "service web not found"})


async def test_registry_credentials_are_kept_and_not_shown(swarm: Api, backend: FakeBackend) -> None:
    header = "eyJ1c2VybmFtZSI6Im1lIiwicGFzc3dvcmQiOiJodXNoIn0="
    status, body, _ = await swarm("POST", "/services/create", SERVICE, headers={"X-Registry-Auth": header})
    assert status == 201
    _, found, _ = await swarm("GET", f"/services/{body['ID']}")
    assert header not in str(found) and "hush" not in str(found)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/services/create", {"Name": "a"}, 400, ""),
        (
            "POST",
            "/services/create",
            SERVICE | {"Name": "-bad"},
            400,
            "name must be valid as a DNS name component",
        ),
        ("GET", '/services?filters={"foo":["x"]}', None, 400, "invalid filter 'foo'"),
        ("GET", '/tasks?filters={"service":["nosuch"]}', None, 404, "service nosuch not found"),
        ("GET", "/nodes/nosuch", None, 404, "node nosuch not found"),
        (
            "POST",
            f"/nodes/{NODE}/update?version=1",
            {"Role": "manager", "Availability": "foo"},
            400,
            "invalid Availability",
        ),
        ("DELETE", f"/nodes/{NODE}", None, 400, "rpc error: code = FailedPrecondition"),
        ("GET", "/secrets/x", None, 404, "secret x not found"),
        ("GET", "/configs/x", None, 404, "config x not found"),
        ("GET", "/networks/x", None, 404, "network x not found"),
        ("POST", "/networks/create", {"Name": "ingress", "Driver": "overlay"}, 409, "already exists"),
        ("POST", "/networks/create", {"Name": "x", "Driver": "macvlan"}, 501, "macvlan"),
        (
            "POST",
            "/networks/create",
            {"Name": "bridge", "Driver": "overlay"},
            403,
            "predefined bridge network",
        ),
        (
            "POST",
            "/networks/create",
            {"Name": "x", "ConfigOnly": True, "Scope": "swarm"},
            403,
            "Network operator fields",
        ),
        (
            "POST",
            "/networks/create",
            {"Name": "x", "Driver": "overlay", "ConfigFrom": {"Network": "nosuch"}},
            404,
            "network nosuch not found",
        ),
        ("POST", "/networks/ingress/connect", {"Container": "x"}, 404, "No such container: x"),
        ("DELETE", "/networks/bridge", None, 403, "pre-defined network and cannot be removed"),
        ("POST", "/swarm/init", {"ListenAddr": "0.0.0.0"}, 503, "already part of a swarm"),
        ("POST", "/swarm/leave", None, 503, "Removing the last manager erases"),
        ("POST", "/swarm/unlock", {"UnlockKey": "x"}, 409, "swarm is not locked"),
        ("POST", "/swarm/update?version=99", {"Name": "default"}, 500, "update out of sequence"),
        ("GET", "/services/nosuch/logs?stdout=1", None, 404, "service nosuch not found"),
        ("GET", f"/containers/json?limit={'9' * 5000}", None, 400, "invalid limit '999"),
        ("GET", "/containers/json?limit=²", None, 400, "invalid limit"),
        ("GET", '/containers/json?filters={"exited":["²"]}', None, 400, "invalid filter 'exited="),
        ("POST", f"/swarm/update?version={'9' * 5000}", {}, 400, "value out of range"),
    ],
)
async def test_refusals(swarm: Api, method: str, path: str, body: Any, status: int, words: str) -> None:
    answered, message, _ = await swarm(method, path, body)
    assert answered == status and words in message["message"], message


async def test_rotating_tokens(swarm: Api) -> None:
    _, before, _ = await swarm("GET", "/swarm")
    path = f"/swarm/update?version={before['Version']['Index']}&rotateWorkerToken=true"
    if before["TLSInfo"]:
        assert (await swarm("POST", path, before["Spec"]))[0] == 200
    status, body, _ = await swarm("POST", path + "&rotateManagerUnlockKey=1", before["Spec"])
    assert status == 501 and "rotateManagerUnlockKey" in body["message"]


async def test_secrets_and_configs(swarm: Api) -> None:
    for noun in ("secrets", "configs"):
        status, body, _ = await swarm(
            "POST", f"/{noun}/create", {"Name": "one", "Data": "aHVzaA==", "Labels": None}
        )
        assert status == 201
        id = body["ID"]
        assert (await swarm("POST", f"/{noun}/create", {"Name": "one", "Data": "aHVzaA=="}))[0] == 409
        _, found, _ = await swarm("GET", f"/{noun}/one")
        assert found["ID"] == id
        assert found["Spec"].get("Data") == (None if noun == "secrets" else "aHVzaA==")
        version = found["Version"]["Index"]
        spec = {"Name": "one", "Labels": {"a": "b"}} | ({"Data": "aHVzaA=="} if noun == "configs" else {})
        assert (await swarm("POST", f"/{noun}/{id}/update?version={version}", spec))[0] == 200
        _, listed, _ = await swarm("GET", f"/{noun}", params={"filters": '{"label":{"a=b":true}}'})
        assert [s["ID"] for s in listed] == [id]
        assert (await swarm("DELETE", f"/{noun}/one"))[:2] == (204, b"")


async def test_networks(swarm: Api, backend: FakeBackend) -> None:
    request = {
        "Name": "shop",
        "CheckDuplicate": True,
        "Driver": "overlay",
        "IPAM": {"Driver": "", "Options": {}, "Config": [{"Subnet": "10.77.0.0/24"}]},
        "Options": None,
        "Labels": {"a": "b"},
    }
    status, body, _ = await swarm("POST", "/networks/create", request)
    assert status == 201 and set(body) == {"Id", "Warning"}
    _, listed, _ = await swarm("GET", "/networks")
    assert {n["Name"] for n in listed} == {"bridge", "ingress", "shop"}
    deny = {"overlace.policy.allow-from": "none"}
    status, _, _ = await swarm("POST", "/overlace/v1/networks/shop/policy", {"Labels": deny})
    assert status == 200 and (await swarm("GET", "/networks/shop"))[1]["Labels"] == {"a": "b", **deny}
    status, answer, _ = await swarm("POST", "/overlace/v1/networks/shop/policy", {"Labels": {"a": "c"}})
    assert status == 400 and "label a is no policy" in answer["message"]
    assert (await swarm("POST", "/overlace/v1/networks/shop/policy", {"Labels": {}}))[0] == 200
    assert (await swarm("GET", "/networks/shop"))[1]["Labels"] == {"a": "b"}
    for filters, names in (
        ('{"scope":["local"]}', {"bridge"}),
        ('{"type":["builtin"]}', {"bridge"}),
        ('{"label":["a=b"]}', {"shop"}),
        ('{"driver":["overlay"],"name":["sho"]}', {"shop"}),
        ('{"id":["' + body["Id"][:6] + '"]}', {"shop"}),
    ):
        _, listed, _ = await swarm("GET", "/networks", params={"filters": filters})
        assert {n["Name"] for n in listed} == names, filters
    manager = backend.manager
    assert manager is not None
    backend.networks.append(overlay_here(manager.store.view().by_name(Network, "shop")))
    _, found, _ = await swarm("GET", "/networks/shop?scope=swarm")
    assert found["Containers"]["c" * 64]["IPv4Address"] == "10.0.9.11/24"
    assert (await swarm("GET", "/networks/shop?scope=local"))[0] == 404
    assert (await swarm("POST", "/networks/prune"))[1] == {"NetworksDeleted": ["shop"]}
    # the node's own view learns of it a moment later: a removed network is gone for people at once
    _, listed, _ = await swarm("GET", "/networks")
    assert {n["Name"] for n in listed} == {"bridge", "ingress"}
    assert (await swarm("GET", "/networks/shop"))[0] == 404


async def test_a_worker_sees_its_own_networks(api: Api, backend: FakeBackend) -> None:
    backend.state = WORKER
    backend.networks.append(overlay_here(Network(id="x" * 25, spec=NetworkSpec(name="shop"))))
    _, listed, _ = await api("GET", "/networks")
    assert {n["Name"] for n in listed} == {"bridge", "shop"}
    status, body, _ = await api("DELETE", "/networks/shop")
    assert status == 503 and "Worker nodes" in body["message"]


async def test_distribution(swarm: Api, backend: FakeBackend) -> None:
    assert backend.manager is not None
    backend.manager.known["registry:5000/a/b:1"] = ResolvedImage()
    status, body, _ = await swarm("GET", "/distribution/registry:5000/a/b:1/json")
    assert status == 200
    assert body == {
        "Descriptor": {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": DIGEST,
            "size": 1234,
        },
        "Platforms": [{"architecture": "amd64", "os": "linux"}],
    }
    assert (await swarm("GET", "/distribution/nosuch/json"))[0] == 503


# -- logs --------------------------------------------------------------------------------------------------------


async def test_log_frames_and_details(swarm: Api, backend: FakeBackend) -> None:
    await swarm("POST", "/services/create", SERVICE)
    await tasks_of(swarm, "web", 2)
    manager = backend.manager
    assert manager is not None
    task = next(iter(manager.store.view().all(Task)))
    manager.lines = [
        LogRecord(task, 1_700_000_000_000_000_001, "stdout", b"hello\n"),
        LogRecord(task, 1_700_000_000_000_000_002, "stderr", b"oh\n"),
    ]
    status, raw, headers = await swarm(
        "GET", "/v1.51/services/web/logs?stdout=1&stderr=1&details=1&timestamps=1"
    )
    assert (status, headers["Content-Type"]) == (200, "application/vnd.docker.multiplexed-stream")
    stream, length = struct.unpack(">BxxxI", raw[:8])
    about = (
        f"com.docker.swarm.node.id={task.node_id},com.docker.swarm.service.id={task.service_id},"
        f"com.docker.swarm.task.id={task.id}"
    )
    assert (stream, raw[8 : 8 + length].decode()) == (1, f"2023-11-14T22:13:20.000000001Z {about} hello\n")
    assert raw[8 + length] == 2
    _, raw, headers = await swarm("GET", f"/v1.41/tasks/{task.id}/logs?stderr=1")
    assert raw == struct.pack(">BxxxI", 2, 3) + b"oh\n"
    assert headers["Content-Type"] == "application/vnd.docker.raw-stream"
    status, body, _ = await swarm("GET", "/services/web/logs")
    assert (status, body["message"]) == (400, "must specify at least one of 'stdout' or 'stderr'")


async def test_what_could_not_be_had_ends_the_stream_with_an_error(swarm: Api, backend: FakeBackend) -> None:
    await swarm("POST", "/services/create", SERVICE)
    assert backend.manager is not None

    async def broken(*_: Any, **__: Any) -> Any:
        raise InvalidArgument("node x is not available")
        yield

    backend.manager.subscribe = broken  # type: ignore[method-assign]
    _, raw, _ = await swarm("GET", "/services/web/logs?stdout=1")
    assert raw[0] == 3 and b"Error grabbing logs: node x is not available" in raw


async def test_container_logs(api: Api, backend: FakeBackend) -> None:
    backend.runtime.put(container())
    backend.runtime.lines["c" * 64] = [LogLine(1, "stdout", b"a\n"), LogLine(2, "stderr", b"b\n")]
    _, raw, _ = await api("GET", "/containers/web.1.task/logs?stdout=1&stderr=1&tail=all")
    assert raw == struct.pack(">BxxxI", 1, 2) + b"a\n" + struct.pack(">BxxxI", 2, 2) + b"b\n"
    assert (await api("GET", "/containers/nosuch/logs?stdout=1"))[0] == 404


# -- this host ---------------------------------------------------------------------------------------------------


async def test_ports_of_containers(api: Api, backend: FakeBackend) -> None:
    """As Docker shows a swarm's tasks: what the host publishes, and what the image exposes."""
    exposing = msgspec.structs.replace(
        image(), config={"ExposedPorts": {"80/tcp": {}, "9000": {}, "53/udp": {}}}
    )
    backend.runtime.stored[exposing.id] = exposing
    backend.runtime.put(container())
    backend.runtime.put(container("old.1.x", "d" * 64, status="exited"))
    backend.ports["c" * 64] = [
        PortConfig(target_port=80, published_port=p, publish_mode="host") for p in (8081, 8080)
    ]
    _, listed, _ = await api("GET", "/containers/json", params={"all": "1"})
    ports = {c["Names"][0]: c["Ports"] for c in listed}
    assert ports["/web.1.task"] == [
        {"PrivatePort": 53, "Type": "udp"},
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8081, "Type": "tcp"},
        {"PrivatePort": 9000, "Type": "tcp"},
    ]
    assert ports["/old.1.x"] == []
    _, shown, _ = await api("GET", "/containers/cccc/json")
    assert shown["NetworkSettings"]["Ports"] == {
        "53/udp": None,
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "0.0.0.0", "HostPort": "8081"}],
        "9000/tcp": None,
    }
    backend.addresses["c" * 64] = [ContainerAddress(network="six", network_id="n6", ports6=True)]
    _, six, _ = await api("GET", "/containers/cccc/json")
    both = [{"HostIp": ip, "HostPort": p} for p in ("8080", "8081") for ip in ("0.0.0.0", "::")]
    assert six["NetworkSettings"]["Ports"]["80/tcp"] == both
    assert set(shown["Config"]["ExposedPorts"]) == {"53/udp", "80/tcp", "9000/tcp"}
    assert [b["HostPort"] for b in shown["HostConfig"]["PortBindings"]["80/tcp"]] == ["8081", "8080"]
    for filters, count in (
        ('{"publish":["8080"]}', 1),
        ('{"publish":["8000-8090/tcp"]}', 1),
        ('{"publish":["8080/udp"]}', 0),
        ('{"expose":["53/udp"]}', 1),
        ('{"expose":["80","81"]}', 1),
        ('{"expose":["81"]}', 0),
    ):
        _, listed, _ = await api("GET", "/containers/json", params={"filters": filters})
        assert len(listed) == count, filters
    assert (await api("GET", "/containers/json", params={"filters": '{"expose":["x"]}'}))[0] == 400


async def test_mounts_and_log_options_of_a_container(api: Api, backend: FakeBackend) -> None:
    config = msgspec.structs.replace(
        container().config,
        mounts=(Mount("bind", "/b", source="/srv"), Mount("volume", "/v")),
        log_max_size=10_000_000,
        log_max_files=3,
    )
    made = Volume("0" * 64, "/v", "/var/lib/x/volumes/0/_data")
    backend.runtime.put(container(config=config, volumes=(made,)))
    _, shown, _ = await api("GET", "/containers/cccc/json")
    assert [(m["Type"], m["Source"], m["Destination"]) for m in shown["Mounts"]] == [
        ("bind", "/srv", "/b"),
        ("volume", made.path, "/v"),
    ]
    assert shown["Mounts"][1]["Name"] == made.name, "Docker names anonymous volumes too"
    assert shown["HostConfig"]["Mounts"] == [
        {"Type": "bind", "Source": "/srv", "Target": "/b"},
        {"Type": "volume", "Source": "", "Target": "/v"},
    ]
    assert shown["HostConfig"]["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "10m", "max-file": "3"},
    }
    _, listed, _ = await api("GET", "/containers/json", params={"filters": f'{{"volume":["{made.name}"]}}'})
    assert len(listed) == 1


async def test_options_of_mounts_are_shown_as_asked_for(api: Api, backend: FakeBackend) -> None:
    mounts = (
        Mount("bind", "/b", source="/srv", read_only=True, propagation="rslave", recursive=False),
        Mount("volume", "/v", source="nas", subpath="in", volume_options={"type": "nfs"}, no_copy=True),
        Mount("tmpfs", "/t", tmpfs_size=5, tmpfs_mode=0o700, tmpfs_exec=True),
    )
    config = msgspec.structs.replace(container().config, mounts=mounts)
    backend.runtime.put(container(config=config))
    _, shown, _ = await api("GET", "/containers/cccc/json")
    assert [m.get(f"{m['Type'].capitalize()}Options") for m in shown["HostConfig"]["Mounts"]] == [
        {"Propagation": "rslave", "NonRecursive": True},
        {"NoCopy": True, "Subpath": "in", "DriverConfig": {"Name": "local", "Options": {"type": "nfs"}}},
        {"SizeBytes": 5, "Mode": 0o700, "Options": [["exec"]]},
    ]
    assert shown["HostConfig"]["Mounts"][0]["ReadOnly"] is True


async def test_a_signal_goes_to_the_container_named_and_is_kill_unless_said(
    api: Api, backend: FakeBackend
) -> None:
    backend.runtime.put(container())
    id = container().config.id
    for query, signal in (("?signal=HUP", "HUP"), ("", "SIGKILL")):
        status, _, _ = await api("POST", f"/containers/cccc/kill{query}")
        assert status == 204 and backend.runtime.signals[-1] == (id, signal)
    status, answer, _ = await api("POST", "/containers/nope/kill")
    assert status == 404 and answer["message"] == "No such container: nope"


async def test_volumes(api: Api, backend: FakeBackend) -> None:
    runtime = backend.runtime
    runtime.kept = {name: StoredVolume(name, f"/v/{name}/_data", 1) for name in ("data", "old")}
    runtime.put(container(volumes=(Volume("data", "/d", "/v/data/_data"),)))
    for filters, names in (
        ("{}", {"data", "old"}),
        ('{"dangling":["true"]}', {"old"}),
        ('{"dangling":["false"]}', {"data"}),
        ('{"name":["at"]}', {"data"}),
        ('{"label":["x"]}', set()),
        ('{"driver":["nfs"]}', set()),
    ):
        _, listed, _ = await api("GET", "/volumes", params={"filters": filters})
        assert {v["Name"] for v in listed["Volumes"]} == names, filters
    _, shown, _ = await api("GET", "/volumes/data")
    assert (shown["Mountpoint"], shown["Driver"], shown["Scope"]) == ("/v/data/_data", "local", "local")
    assert (await api("DELETE", "/volumes/old"))[0] == 204
    assert (await api("DELETE", "/volumes/old"))[:2] == (404, {"message": "get old: no such volume"})
    assert (await api("DELETE", "/volumes/old", params={"force": "1"}))[0] == 204
    assert (await api("GET", "/volumes/old"))[0] == 404


async def test_making_and_pruning_volumes(api: Api, backend: FakeBackend) -> None:
    asked = {"Name": "data", "Labels": {"tier": "db"}, "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}}
    status, made, _ = await api("POST", "/volumes/create", json=asked)
    assert (status, made["Labels"], made["Options"]) == (201, {"tier": "db"}, asked["DriverOpts"])
    _, nameless, _ = await api("POST", "/volumes/create", json={})
    assert len(nameless["Name"]) == 64 and ANONYMOUS_LABEL in nameless["Labels"]
    status, said, _ = await api("POST", "/volumes/create", json={"Driver": "nfs"})
    assert (status, said["message"]) == (404, 'error looking up volume plugin nfs: plugin "nfs" not found')
    _, listed, _ = await api("GET", "/volumes", params={"filters": '{"label":["tier=db"]}'})
    assert [v["Name"] for v in listed["Volumes"]] == ["data"]
    _, pruned, _ = await api("POST", "/volumes/prune")
    assert pruned == {"VolumesDeleted": [nameless["Name"]], "SpaceReclaimed": 10}, "those with a name stay"
    kept = {"filters": '{"all":["1"],"label!":["tier=db"]}'}
    assert (await api("POST", "/volumes/prune", params=kept))[1]["VolumesDeleted"] == []
    assert (await api("POST", "/volumes/prune", params={"filters": '{"all":["true"]}'}))[1][
        "VolumesDeleted"
    ] == ["data"]


async def test_containers(api: Api, backend: FakeBackend) -> None:
    backend.runtime.put(container())
    backend.runtime.put(container("old.1.x", "d" * 64, status="exited", exit_code=3, finished_at=1))
    _, listed, _ = await api("GET", "/containers/json")
    assert [c["Names"] for c in listed] == [["/web.1.task"]]
    for query, names in (
        ({"all": "1"}, {"/web.1.task", "/old.1.x"}),
        ({"filters": '{"exited":["3"]}'}, {"/old.1.x"}),
        ({"filters": '{"status":["exited"]}'}, {"/old.1.x"}),
        ({"all": "1", "filters": '{"name":["web"],"is-task":["true"]}'}, {"/web.1.task"}),
        ({"all": "1", "filters": '{"label":["com.docker.swarm.service.name=x"]}'}, set()),
        ({"filters": '{"ancestor":["registry:5000/shop/web:1"]}'}, {"/web.1.task"}),
    ):
        _, listed, _ = await api("GET", "/containers/json", params=query)
        assert {c["Names"][0] for c in listed} == names, query
    assert (await api("GET", "/containers/json", params={"filters": '{"status":["x"]}'}))[0] == 400
    assert (await api("GET", "/containers/cccc/json"))[1]["State"]["Running"] is True
    assert (await api("GET", "/containers/nosuch/json"))[:2] == (
        404,
        {"message": "No such container: nosuch"},
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/containers/create", 400),
        ("POST", "/containers/web.1.task/pause", 501),
        ("POST", "/containers/web.1.task/rename?name=other", 409),
        ("DELETE", "/containers/web.1.task", 409),
        ("POST", "/containers/nosuch/start", 404),
        ("POST", "/containers/web.1.task/attach", 400),
        ("POST", "/containers/web.1.task/attach?logs=1", 501),
        ("POST", "/containers/web.1.task/resize?h=1&w=x", 400),
        ("POST", "/containers/web.1.task/resize?h=1&w=2", 409),
        ("POST", "/containers/web.1.task/wait?condition=removed", 501),
        ("GET", "/volumes/x", 404),
        ("GET", "/plugins/x/json", 404),
        ("POST", "/build", 501),
        ("POST", "/auth", 501),
        ("POST", "/images/registry:5000/shop/web:1/push", 501),
        ("GET", "/images/nosuch/x:1/json", 404),
        ("DELETE", "/images/nosuch/x:1", 404),
    ],
)
async def test_what_is_not_there_says_so(
    api: Api, backend: FakeBackend, method: str, path: str, status: int
) -> None:
    backend.runtime.put(container())
    backend.runtime.stored["i"] = image()
    answered, body, _ = await api(method, path)
    assert answered == status and len(body["message"].split()) >= 2


async def test_images_have_names_with_slashes(api: Api, backend: FakeBackend) -> None:
    backend.runtime.stored["sha256:" + "11" * 32] = image()
    status, body, _ = await api("GET", "/images/registry:5000/shop/web:1/json")
    assert status == 200 and body["RepoTags"] == ["registry:5000/shop/web:1"]
    for filters, count in (
        ('{"reference":["registry:5000/shop/*"]}', 1),
        ('{"reference":["other"]}', 0),
        ('{"label":["maker=tests"]}', 1),
        ('{"dangling":["true"]}', 0),
    ):
        _, listed, _ = await api("GET", "/images/json", params={"filters": filters})
        assert len(listed) == count, filters
    status, body, _ = await api("POST", "/images/create?fromImage=registry:5000/nosuch&tag=1")
    assert status == 404 and "manifest unknown" in body["message"], (
        "nothing was streamed yet: the status says it"
    )
    _, removed, _ = await api("DELETE", "/images/registry:5000/shop/web:1")
    assert removed == [{"Untagged": "registry:5000/shop/web:1"}, {"Deleted": "sha256:" + "11" * 32}]


async def test_a_windows_host_pulls_for_its_build(tmp_path: Path) -> None:
    backend = FakeBackend(os="windows", os_version="10.0.20348.2527", emulated=True)
    server = ApiServer(backend)
    path = tmp_path / "d.sock"
    await server.start([f"unix://{path}"])
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            api = Api(session)
            backend.runtime.registry["r:5000/a:1"] = image("r:5000/a:1", os="windows")
            status, _, headers = await api("POST", "/images/create?fromImage=r:5000/a&tag=1")
            assert status == 200 and headers["Ostype"] == "windows"
            ((reference, where, _),) = backend.runtime.pulled
            assert reference == "r:5000/a:1"
            assert (where.os, where.architecture, where.os_version) == ("windows", "amd64", "10.0.20348.2527")
            _, info, _ = await api("GET", "/info")
            assert "emulated" in info["OperatingSystem"] and info["OSType"] == "windows"
            assert "com.overlace.emulated=windows" in info["Labels"]
            assert any("emulated" in w for w in info["Warnings"])
    finally:
        await server.close()


def test_the_double_is_a_runtime() -> None:
    from overlace.runtime.base import Runtime

    wanted = {n for n in vars(Runtime) if not n.startswith("_")}
    there = set(dir(FakeRuntime))
    assert wanted - there <= {
        "open",
        "close",
        "erase_files",
    }


# -- disk usage --------------------------------------------------------------------------------------------------


async def test_disk_usage_counts_what_there_is_and_who_uses_it(
    api: Api, backend: FakeBackend, tmp_path: Path
) -> None:
    data = tmp_path / "_data"
    (data / "deep").mkdir(parents=True)
    (data / "one").write_bytes(b"x" * 1000)
    os.link(data / "one", data / "deep" / "again")
    runtime = backend.runtime
    runtime.kept["mine"] = StoredVolume("mine", str(data), 1)
    stored = image()
    runtime.stored[stored.id] = stored
    runtime.put(container(image_id=stored.id))
    status, found, _ = await api("GET", "/v1.41/system/df")
    assert status == 200 and found["BuildCache"] == [] and found["BuilderSize"] == 0
    assert found["LayersSize"] == 5_000_000 and found["Images"][0]["Containers"] == 1
    assert found["Containers"][0]["SizeRw"] == 4096 and found["Containers"][0]["SizeRootFs"] == 5_004_096
    assert found["Volumes"][0]["UsageData"] == {"Size": 1000, "RefCount": 0}, (
        "a file with two names counts once"
    )
    _, found, _ = await api("GET", "/system/df?type=volume&type=image")
    assert found["Containers"] is None and found["BuildCache"] is None and found["Volumes"]
    assert "BuilderSize" not in found
    assert (await api("GET", "/system/df?type=odd"))[:2] == (400, {"message": "unknown object type: odd"})
