"""A bed for tests of the embedded runtime: a registry on loopback, images made on the spot, a runtime to
throw away.

Owns what it starts and checks, when a test is over, that nothing of it is left: mounts, processes, cgroups.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlace.runtime.base import Container, ContainerConfig, LogOptions, Platform
from overlace.runtime.oci.mkimage import Variant, busybox_rootfs, push, write_layout
from overlace.runtime.oci.runtime import OciRuntime

LINUX = Platform("linux", "amd64")
# bcrypt of "p" at the lowest cost
HTPASSWD = "u:$2b$04$kw96FmGsxpFR7aeIeoPyqOu05BwarHZc2lcjVv5Qmaxmt4BMEAWS2\n"
LOOP = ("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done")


class Registry:
    """A plain-HTTP docker-registry with its own folder; `auth` wants user `u`, password `p`."""

    def __init__(self, root: Path, auth: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        htpasswd = ""
        if auth:
            (root / "htpasswd").write_text(HTPASSWD)
            htpasswd = f"auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n"
        (root / "registry.yml").write_text(
            f"version: 0.1\nlog:\n  level: error\nstorage:\n"
            f"  filesystem:\n    rootdirectory: {root}/registry\n"
            f"http:\n  addr: {self.address}\n{htpasswd}"
        )
        with open(root / "registry.log", "w") as output:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(root / "registry.yml")], stdout=output, stderr=output
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/", timeout=1).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError((root / "registry.log").read_text())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Bed:
    """One runtime with data and exec roots of its own."""

    def __init__(self, root: Path, registry: Registry, platform: Platform = LINUX) -> None:
        self.root, self.registry, self.platform = root, registry, platform
        self.data_root, self.exec_root = root / "data", root / "exec"
        self.cgroup = f"/overlace-test-{secrets.token_hex(4)}"
        self.image = f"{registry.address}/busy:1"
        self.runtime = self.make()

    def make(self) -> OciRuntime:
        return OciRuntime(self.data_root, self.exec_root, cgroup_parent=self.cgroup, platform=self.platform)

    async def reopen(self) -> OciRuntime:
        """As after a restart of the daemon: a runtime that knows only what is on disk."""
        await self.runtime.close()
        self.runtime = self.make()
        await self.runtime.open()
        return self.runtime

    def config(self, *args: str, **fields: Any) -> ContainerConfig:
        identity = secrets.token_hex(32)
        values: dict[str, Any] = {
            "id": identity,
            "name": f"c-{identity[:8]}",
            "image": self.image,
            "netns": "",
        }
        if args:
            values["args"] = args
        return ContainerConfig(**(values | fields))

    async def run(self, *args: str, **fields: Any) -> tuple[Container, str]:
        """Create, start, wait; returns the ended container and what it printed on both streams."""
        config = self.config(*args, **fields)
        await self.runtime.create(config)
        await self.runtime.start(config.id)
        ended = await asyncio.wait_for(self.runtime.wait(config.id), 30)
        return ended, await self.output(config.id)

    async def sh(self, script: str, **fields: Any) -> str:
        """The output of a shell script that must end well."""
        ended, text = await self.run("sh", "-c", script, **fields)
        assert ended.exit_code == 0, (ended, text)
        return text

    async def output(self, container_id: str, **options: Any) -> str:
        lines = [line.data async for line in self.runtime.logs(container_id, LogOptions(**options))]
        return b"".join(lines).decode()

    async def running(self, *args: str, **fields: Any) -> ContainerConfig:
        config = self.config(*(args or LOOP), **fields)
        await self.runtime.create(config)
        await self.runtime.start(config.id)
        return config

    async def until(self, condition: Any, seconds: float = 15.0) -> None:
        """Wait for an async condition; a failure names nothing, the assertion that follows does."""
        deadline = time.monotonic() + seconds
        while not await condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - anything may be the condition
            await asyncio.sleep(0.02)

    def processes(self) -> list[int]:
        """Pids whose command line or bundle names this bed's roots."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(self.exec_root).encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def mounts(self) -> list[str]:
        return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.root) in line]

    def cgroups(self) -> list[Path]:
        return [p for p in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}/*") if p.is_dir()]

    async def clean(self) -> None:
        """Remove every container and check that nothing is left behind."""
        for container in await self.runtime.list():
            await self.runtime.remove(container.config.id, force=True)
        try:
            assert self.mounts() == []
            await self.until(self._no_cgroup, 5)
            assert self.cgroups() == []
            assert list((self.data_root / "containers").glob("*")) == []
            assert list((self.exec_root / "bundles").glob("*")) == []
            await self.until(self._no_process, 5)
            assert self.processes() == []
        finally:
            await self.runtime.close()
            self.demolish()

    async def _no_process(self) -> bool:
        return not self.processes()

    async def _no_cgroup(self) -> bool:
        return not self.cgroups()

    def demolish(self) -> None:
        """Whatever a failed test left."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        for folder in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            with contextlib.suppress(OSError):
                folder.rmdir()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    server = Registry(tmp_path_factory.mktemp("registry"))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox with a few files tests look for."""
    root = busybox_rootfs(
        tmp_path_factory.mktemp("rootfs") / "root",
        {
            "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n",
            "/etc/group": b"root:x:0:\napp:x:1001:\nextra:x:2000:app\nmore:x:3000:\n",
            "/seed/a": b"from the image\n",
            "/seed/sub/b": b"deeper\n",
            "/app/say": b'#!/bin/sh\necho "said $*"\n',
            "/app/plain": b"not a program\n",
        },
    )
    return root


@pytest.fixture(scope="module")
def pushed(registry: Registry, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Images in the registry: name -> digest."""
    layout = tmp_path_factory.mktemp("layout")
    config = {
        "Cmd": ["sh", "-c", "echo default"],
        "Env": ["FROM_IMAGE=yes", "BOTH=image"],
        "WorkingDir": "/made/here",
    }
    write_layout(layout, [Variant(LINUX, rootfs, config)], "busy")

    async def send() -> dict[str, str]:
        return {"busy:1": await push(layout, "busy", f"{registry.address}/busy:1")}

    return asyncio.run(send())


@pytest.fixture
async def bed(registry: Registry, pushed: dict[str, str], tmp_path: Path) -> AsyncIterator[Bed]:
    """A runtime with `busy:1` pulled."""
    made = Bed(tmp_path, registry)
    try:
        await made.runtime.open()
        await made.runtime.pull(made.image, LINUX)
        yield made
        await made.clean()
    finally:
        made.demolish()
