"""What a living swarm answers, against the document it serves at /openapi.json.

Any request is tried without a swarm behind it in tests/unit/api/test_openapi.py; here every call that only reads meets
objects that managers and agents made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import docker
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]


@pytest.fixture(scope="module")
def ids(swarm: Swarm, anydocker: Docker, image: Image) -> Iterator[dict[str, str]]:
    cli = anydocker
    net = cli("network", "create", "-d", "overlay", "onet")
    secret = cli("secret", "create", "osecret", "-", stdin="x")
    config = cli("config", "create", "oconfig", "-", stdin="x")
    service = cli(
        *(
            "service",
            "create",
            "-d",
            "--name",
            "oweb",
            "--network",
            "onet",
            "--secret",
            "osecret",
            "-p",
            "8790:80",
        ),
        *("--config", "oconfig", "--update-delay", "1s", image("app:1")),
    )
    cli("service", "create", "-d", "--name", "ojob", "--mode", "replicated-job", image("app:1"), "false")
    cli("service", "create", "-d", "--name", "owaits", "--constraint", "node.labels.no==1", image("app:1"))
    cli("service", "update", "-d", "--env-add", "A=B", "--update-monitor", "300ms", "oweb")
    swarm.updated("oweb")
    task = swarm.running("oweb")[0]["ID"]
    node = swarm.node_id("windows-1")
    yield {
        "networks": net,
        "secrets": secret,
        "configs": config,
        "services": service,
        "tasks": task,
        "nodes": node,
    }
    cli("service", "rm", "oweb", "ojob", "owaits")
    for kind, name in (("secret", "osecret"), ("config", "oconfig"), ("network", "onet")):
        eventually(lambda kind=kind, name=name: cli.run(kind, "rm", name).returncode == 0, f"{kind} goes")


def test_every_reading_call_answers_as_promised(swarm: Swarm, ids: dict[str, str]) -> None:
    document = swarm.get("/openapi.json")
    promised = schemathesis.openapi.from_dict(document)
    client = docker.APIClient(base_url=swarm.lab.manager.docker_host, version="1.51")  # a requests.Session
    tried = 0
    try:
        for path, calls in document["paths"].items():
            if "get" not in calls or path.endswith("/logs") or path == "/_ping":
                continue
            id = ids.get(path.split("/")[1], "")
            for query in ({}, {"verbose": "1", "status": "1", "insertDefaults": "1"}):
                case = promised[path]["GET"].Case(
                    path_parameters={"id": id} if "{id}" in path else {}, query=query
                )
                answer = client.get(f"{client.base_url}/v1.51{path.replace('{id}', id)}", params=query)
                assert answer.status_code == 200, answer.text
                case.validate_response(answer, checks=[response_schema_conformance, status_code_conformance])
                tried += 1
    finally:
        client.close()
    assert tried > 30
