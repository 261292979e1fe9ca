"""A bed for tests of runtime docker on Windows: the stand-in for Docker on Windows, and images that say windows.

Owns the stand-in's process and checks at the end that nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hns_bed import free_port
from oci_bed import LINUX, Bed, Registry

from overlace.lab.layout import WINDOWS_BUILD
from overlace.lab.windows.wine import windows_path
from overlace.runtime.base import Platform
from overlace.runtime.docker.on_windows import Windows
from overlace.runtime.docker.runtime import DockerRuntime
from overlace.runtime.oci.mkimage import Variant, push, write_layout

WINDOWS = Platform("windows", "amd64", WINDOWS_BUILD)


class Engine:
    """One stand-in; `where` is the network namespace it runs in."""

    def __init__(self, folder: Path, registry: str, *options: str, where: Path | None = None) -> None:
        self.folder, self.registry, self.options, self.where = folder, registry, options, where
        self.port = free_port(where)
        self.cgroup = f"/overlace-test-{secrets.token_hex(4)}"
        self.namespaces = folder / "run" / "namespaces"
        self.drive = folder / "c"
        self.drive.mkdir(exist_ok=True)
        self.record = folder / "record.jsonl"
        self.process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def host(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        inside = ["nsenter", f"--net={self.where}"] if self.where else []
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "overlace.lab.windows.engine", "--listen", f"127.0.0.1:{self.port}",
             "--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "run"),
             "--record", str(self.record), "--drive", f"C={self.drive}", "--drive", "Z=/",
             "--insecure-registry", self.registry, "--cgroup-parent", self.cgroup, *self.options],
            stdout=subprocess.PIPE, stderr=output, text=True,
        )  # fmt: skip
        assert self.process.stdout
        first = self.process.stdout.readline()
        assert first == f"engine 127.0.0.1:{self.port}\n", (first, (self.folder / "log").read_text())

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        assert self.process.stdout
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()
        self.process = None

    def remove(self) -> None:
        """For good; nothing of it is left."""
        self.end()
        assert not self.namespaces.exists() or not os.listdir(self.namespaces)
        for folder in [
            *Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"),
            Path("/sys/fs/cgroup", self.cgroup[1:]),
        ]:
            if folder.is_dir():
                folder.rmdir()

    def asked(self, method: str, path: str) -> list[dict[str, Any]]:
        """The record's lines of a request, without its version."""
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [e for e in lines if e["method"] == method and e["path"].split("/", 2)[2] == path.lstrip("/")]


class EngineBed(Bed):
    """The bed of the embedded runtime, with runtime docker on the stand-in in its place."""

    def __init__(self, root: Path, registry: Registry, engine: Engine) -> None:
        self.engine = engine
        super().__init__(root, registry, WINDOWS)
        self.image = f"{registry.address}/win:1"

    def make(self) -> DockerRuntime:  # type: ignore[override]  # the same verbs
        made = DockerRuntime(self.engine.host, self.data_root, self.exec_root, platform=WINDOWS)
        made._system = Windows(WINDOWS, windows_path)  # the stand-in knows this host's folders by a drive
        return made


@pytest.fixture(scope="module")
def images(registry: Registry, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`win:1` for the stand-in's build, `old:1` and `new:1` for other builds, `lin:1` for Linux."""
    layout = tmp_path_factory.mktemp("layout")
    config = {"Cmd": ["sh", "-c", "echo default"], "Env": ["FROM_IMAGE=yes", "BOTH=image"]}
    builds = {"win": WINDOWS, "new": Platform("windows", "amd64", "10.0.26100.1"), "lin": LINUX}
    for name, platform in builds.items():
        write_layout(layout, [Variant(platform, rootfs, config)], name)

    async def send() -> None:
        for name in builds:
            await push(layout, name, f"{registry.address}/{name}:1")

    asyncio.run(send())


@pytest.fixture(scope="module")
def engine(registry: Registry, images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("e"), registry.address)
    try:
        yield made
    finally:
        made.remove()
