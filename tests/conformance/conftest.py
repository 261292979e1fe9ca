"""One lab for all, one to break; the docker CLIs; and the broom that leaves every test a clean swarm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from overlace.lab import Lab
from overlace.lab.engine import EngineError
from overlace.lab.layout import OUTSIDE_ADDRESS
from overlace.model.errors import OverlaceError

from .bed import Docker, Swarm, clis, eventually
from .images import push_images

CLIS = clis()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.conformance)


def _up(name: str, **options: int | bool) -> Lab:
    """A lab of this run's own, `name-<pid>`: another run at the same time is left alone, a dead run's labs are not."""
    for left in Lab.names():
        owner = left.removeprefix(f"{name}-")
        if owner != left and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            with contextlib.suppress(OverlaceError):
                Lab.remove(left)
    return Lab.up(f"{name}-{os.getpid()}", **options)  # type: ignore[arg-type]  # counts and a flag


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two Linux hosts, an emulated Windows host, a client: a swarm, with the images in its registry."""
    lab = _up("conf", linux=2, windows=1)
    try:
        push_images(lab.registry)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="session")
def swarm(lab: Lab) -> Swarm:
    return Swarm(lab)


@pytest.fixture(scope="session")
def image(lab: Lab) -> Callable[[str], str]:
    """`image("app:1")`: its full name in the lab's registry."""
    return lambda name: f"{lab.registry}/{name}"


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration folder for the CLIs, so that nobody's own is used."""
    return str(tmp_path_factory.mktemp("docker"))


@pytest.fixture(scope="session", params=sorted(CLIS) or ["none"], ids=lambda version: f"cli-{version}")
def cli(request: pytest.FixtureRequest) -> str:
    """Each docker CLI there is, in turn. None at all is a failure: nothing would have been tested."""
    assert request.param in CLIS, "no docker CLI on this machine: `make setup` provides one"
    return CLIS[request.param]


@pytest.fixture(scope="session")
def docker(cli: str, lab: Lab, config: str) -> Docker:
    """The lab's swarm through each CLI in turn."""
    return Docker(cli, lab, config)


@pytest.fixture(scope="session")
def anydocker(lab: Lab, config: str) -> Docker:
    """The newest CLI there is, for what is not about the CLI: packets, restarts."""
    assert CLIS, "no docker CLI on this machine: `make setup` provides one"
    return Docker(list(CLIS.values())[-1], lab, config)


@pytest.fixture(scope="session")
def apart() -> Iterator[Lab]:
    """Two hosts in no swarm, to join, leave and break."""
    lab = _up("confm", linux=2, windows=0, form_swarm=False)
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def outside(lab: Lab, swarm: Swarm) -> Iterator[str]:
    """Address of a web server beyond the underlay; it answers with the address it was asked from."""
    program = Path(__file__).with_name("outside.py")
    command = lab.command("switch", [sys.executable, str(program), OUTSIDE_ADDRESS])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        url = f"http://{OUTSIDE_ADDRESS}/"
        try:
            eventually(lambda: swarm.curl(url, seconds=1), "the world answers the client")
            yield url
        finally:
            process.terminate()


KINDS = ("services", "secrets", "configs", "networks")


def _there(swarm: Swarm) -> dict[str, set[str]]:
    return {
        kind: {one.get("ID") or one.get("Id") for one in swarm.get(f"/{kind}") if one.get("Scope") != "local"}
        for kind in KINDS
    }


def _volumes(swarm: Swarm) -> set[tuple[str, str]]:
    """(host, name) of every volume."""
    return {
        (host.name, one["Name"])
        for host in swarm.lab.hosts
        if host.exec_root
        for one in swarm.get("/volumes", host=host.name)["Volumes"]
    }


def _removed(swarm: Swarm, url: str, host: str | None = None) -> bool:
    """False while a container or task that is about to go has it."""
    try:
        swarm.call("DELETE", url, host=host)
    except EngineError as error:
        return error.status == 404
    return True


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test made is gone after it; what its module made stays."""
    if "lab" not in request.fixturenames:
        yield
        return
    swarm: Swarm = request.getfixturevalue("swarm")
    before, volumes = _there(swarm), _volumes(swarm)
    yield
    after = _there(swarm)
    for kind in KINDS:
        for id in after[kind] - before[kind]:
            eventually(partial(_removed, swarm, f"/{kind}/{id}"), f"{kind} of the test are removed")
    left = after["services"] - before["services"]

    def stopped() -> bool:
        return not any(
            one["Labels"].get("com.docker.swarm.service.id") in left
            for host in swarm.lab.hosts
            if host.exec_root
            for one in swarm.containers(host.name)
        )

    if left:
        eventually(stopped, "the containers of removed services end", 20)
    for host, name in _volumes(swarm) - volumes:
        eventually(partial(_removed, swarm, f"/volumes/{name}", host), f"volume {name} of {host} goes", 20)
