"""A bed for tests of runtime docker: a lab host with a real Docker Engine of its own, and the embedded runtime's images.

Owns the lab. The tests' runtimes share its engine and registry, each with data and exec roots of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from oci_bed import LINUX, Bed, Registry

from overlace.lab import Lab
from overlace.runtime.docker.runtime import DockerRuntime


class DockerBed(Bed):
    """The bed of the embedded runtime, with a Docker Engine in its place."""

    def __init__(self, root: Path, lab: Lab) -> None:
        self.lab = lab
        self.engine = lab.host("linux-1").engine_socket
        super().__init__(root, SimpleNamespace(address=lab.registry))  # type: ignore[arg-type]  # all it asks of it

    def make(self) -> DockerRuntime:  # type: ignore[override]  # the same verbs
        return DockerRuntime(f"unix://{self.engine}", self.data_root, self.exec_root, platform=LINUX)

    def engine_cli(self, *argv: str) -> str:
        """What `docker` prints when it talks to the engine itself."""
        return self.lab.docker("linux-1", "-H", f"unix://{self.engine}", *argv).stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(f"dkr-{os.getpid()}", linux=1, windows=0, form_swarm=False, runtime="docker")
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Registry:
    """Overrides the embedded runtime's: the engine can reach the lab's only."""
    return SimpleNamespace(address=lab.registry)  # type: ignore[return-value]  # all that is asked of it


@pytest.fixture
async def bed(lab: Lab, pushed: dict[str, str], tmp_path: Path) -> AsyncIterator[DockerBed]:
    """A runtime with `busy:1` pulled."""
    made = DockerBed(tmp_path, lab)
    try:
        await made.runtime.open()
        await made.runtime.pull(made.image, LINUX)
        yield made
        await made.clean()
    finally:
        await made.runtime.close()
        made.demolish()
