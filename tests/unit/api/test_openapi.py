"""The OpenAPI document against the routes, and schemathesis against a server: seeded, so that a failure comes again.

What is sent is made from the document (good and bad); what comes back must be what the document says, a refusal must say
something, and no request may be a surprise to the server (500 is only for a stale version, as in Docker).
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from overlace.api import routes
from overlace.api.backend import InitRequest
from overlace.api.openapi import document
from overlace.api.server import ApiServer
from overlace.model.objects import Config, Network, Node, Secret, Service, Task
from overlace.model.specs import (
    ConfigSpec,
    ContainerSpec,
    EndpointSpec,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    SecretSpec,
    ServiceSpec,
    TaskSpec,
)

from .doubles import FakeBackend, Puppets, overlay_here, until

pytestmark = pytest.mark.slow

NOUNS = ("swarm", "nodes", "services", "tasks", "secrets", "configs", "networks", "_ping", "version", "info")
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]


def test_every_call_of_the_swarm_part_is_in_the_document_and_none_other() -> None:
    served = {
        (route.method.lower(), route.path)
        for route in routes.ALL
        if route.path.split("/")[1] in NOUNS and route.method != "HEAD"
    }
    promised = {(method, path) for path, calls in document()["paths"].items() for method in calls}
    assert served == promised


def test_the_document_is_valid_and_every_reference_leads_somewhere() -> None:
    text = msgspec.json.encode(document()).decode()
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert names <= set(document()["components"]["schemas"])
    schemathesis.openapi.from_dict(document()).validate()


async def seed(backend: FakeBackend) -> dict[str, str]:
    """One object of each kind, in use by a service whose tasks run; ids by noun."""
    await backend.swarm_init(InitRequest())
    manager = backend.manager
    assert manager is not None
    control, store = manager.control, manager.store
    network, _ = await control.create_network(NetworkSpec(name="shop"))
    secret = await control.create_secret(SecretSpec(name="key", data=b"x"))
    config = await control.create_config(ConfigSpec(name="settings", data=b"y", labels={"a": "b"}))
    asyncio.create_task(Puppets(store).run())  # noqa: RUF006  ends with its loop
    spec = ServiceSpec(
        name="web",
        labels={"tier": "front"},
        task_template=TaskSpec(
            container_spec=ContainerSpec(image="r/web:1", env=["A=B"]),
            networks=[NetworkAttachmentConfig(target=network)],
        ),
        endpoint_spec=EndpointSpec(ports=[PortConfig(target_port=80)]),
    )
    service, _ = await control.create_service(spec)
    await until(lambda: any(True for _ in store.view().tasks_of_service(service)))
    task = next(iter(store.view().tasks_of_service(service))).id
    found = store.view().get(Network, network)
    assert found is not None
    backend.networks.append(overlay_here(found))
    node = next(n.id for n in store.view().all(Node) if n.manager_status is None)
    return {
        "networks": network,
        "secrets": secret,
        "configs": config,
        "services": service,
        "tasks": task,
        "nodes": node,
    }


class Served:
    """A server on a TCP port, in a thread of its own: schemathesis calls it as any client does."""

    def __init__(self) -> None:
        self.backend = FakeBackend()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = ApiServer(self.backend)
        self.ids = self._do(seed(self.backend))
        self._do(self._server.start([f"tcp://127.0.0.1:{self.port}"]))

    def _do(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def again(self) -> None:
        """The swarm as it was, after a call that ended it."""
        if self.backend.manager is None:
            self.ids = self._do(seed(self.backend))

    def version_of(self, noun: str) -> int:
        manager = self.backend.manager
        assert manager is not None
        view = manager.store.view()
        if noun == "swarm":
            from overlace.model.objects import Cluster

            return next(c.version for c in view.all(Cluster))
        kind = {
            "networks": Network, "secrets": Secret, "configs": Config,
            "services": Service, "tasks": Task, "nodes": Node,
        }[noun]  # fmt: skip
        found = view.get(kind, self.ids[noun])
        return found.version if found is not None else 0

    def close(self) -> None:
        self._do(self._server.close())

        async def rest() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


api = schemathesis.openapi.from_dict(document())


@api.parametrize()
@settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_any_request_is_answered_as_the_document_says(served: Served, case: schemathesis.Case) -> None:
    served.again()
    noun = case.path.split("/")[1]
    if (
        noun in served.ids and len(str(case.path_parameters.get("id", ""))) % 2
    ):  # an id there is, half of the time
        case.path_parameters["id"] = served.ids[noun]
    version = case.query.get("version")
    if isinstance(version, int) and version % 2:
        case.query["version"] = served.version_of(noun)
    if case.path == "/swarm/leave":
        case.query["force"] = "1"
    response = case.call(base_url=f"http://127.0.0.1:{served.port}", timeout=20)
    if response.status_code >= 400:
        said = response.json()
        assert set(said) == {"message"} and said["message"].strip(), said
        assert "internal error" not in said["message"], said
    if response.status_code == 500:
        assert response.json()["message"].endswith("update out of sequence")
    elif response.status_code not in (501, 503):
        case.validate_response(response, checks=[not_a_server_error, *CHECKS])
    else:
        case.validate_response(response, checks=CHECKS)


def test_every_call_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[3] / "docs/api.md").read_text()
    for path, calls in document()["paths"].items():
        for method in calls:
            assert f"`{method.upper()} {path}`" in manual, (
                f"docs/api.md says nothing of {method.upper()} {path}"
            )
