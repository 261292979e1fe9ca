"""This manager's etcd member: a child process that outlives a crash of the daemon, and is started again when it dies.

Owns its command line, its folder and its life. Must not know what is kept in it, nor who the other managers are beyond
the names and addresses in its configuration. Managers only can speak to it: the peer port asks for a certificate of the
swarm's CA with a manager's name in it, the client side is a unix socket in a folder of root's.

Timings: a lost leader of etcd's is noticed after 1.5 to 3 s, which a busy host or a slow disk does not trip over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from overlace.model.errors import Unavailable
from overlace.model.objects import PEER_PORT
from overlace.store.etcd.client import EtcdClient, EtcdError

log = structlog.get_logger(__name__)
MANAGER_NAME = "swarm-manager"  # DNS name in every manager's certificate and in no worker's
_SOCKET = (
    "client:0"  # etcd 3.4 wants a host and a port even in the URL of a unix socket: this is a file's name
)
_STOP_SECONDS = 5.0
_PAUSE = (0.2, 5.0)  # seconds before it is started again, first and last
_STEADY_SECONDS = 10.0


class EtcdConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a member must be told; kept on disk as long as this node is a manager of several (or was)."""

    name: str  # node id
    peer_url: str  # https://ADDRESS:2380, as the other managers reach it
    listen_url: str
    cluster: tuple[tuple[str, str], ...]  # (name, peer URL) of the members to start with, this one too
    state: Literal["new", "existing"]
    token: str  # the swarm's id: members of another swarm are refused


class EtcdFiles(msgspec.Struct, frozen=True):
    """`folder` is the member's own; `pair` (key and certificate in one file) and `ca` are the node's identity."""

    folder: Path
    pair: Path
    ca: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        return self.folder / _SOCKET

    @property
    def pid(self) -> Path:
        return self.folder / "pid"


def plan_argv(
    program: str, config: EtcdConfig, files: EtcdFiles, force_new_cluster: bool = False
) -> list[str]:
    """The member's command line. It runs in `files.folder`."""
    argv = [
        program,
        f"--name={config.name}",
        f"--data-dir={files.data}",
        f"--listen-peer-urls={config.listen_url}",
        f"--initial-advertise-peer-urls={config.peer_url}",
        f"--listen-client-urls=unix://{_SOCKET}",
        f"--advertise-client-urls=unix://{_SOCKET}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in config.cluster),
        f"--initial-cluster-state={config.state}",
        f"--initial-cluster-token={config.token}",
        f"--peer-cert-file={files.pair}",
        f"--peer-key-file={files.pair}",
        f"--peer-trusted-ca-file={files.ca}",
        "--peer-client-cert-auth=true",
        f"--peer-cert-allowed-hostname={MANAGER_NAME}",
        # who the client is, its certificate says; from which of its addresses it comes does not matter
        "--experimental-peer-skip-client-san-verification=true",
        "--max-txn-ops=6000",
        "--max-request-bytes=3145728",  # with etcd's 512 KiB on top still less than its gateway takes
        "--quota-backend-bytes=8589934592",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=1000",
        "--snapshot-count=10000",
        # members come as learners and go after a look at who is left (manager/managers.py); etcd's own check would
        # refuse to replace a dead manager by a new one
        "--strict-reconfig-check=false",
        "--heartbeat-interval=150",
        "--election-timeout=1500",
        "--pre-vote=true",
        "--logger=zap",
        "--log-level=error",
    ]
    return [*argv, "--force-new-cluster=true"] if force_new_cluster else argv


class EtcdProcess:
    """`start`, then `stop` (orderly) or nothing at all: a member left behind is found again by the next `start`."""

    def __init__(self, config: EtcdConfig, files: EtcdFiles) -> None:
        self.config = config
        self.files = files
        self._keeper: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, *, force_new_cluster: bool = False) -> None:
        """Running, or being started again and again, when this returns. Raises Unavailable (no such program, or
        the disk refuses). `force_new_cluster`: forget all other members, keep the data."""
        program = find_program()
        if len(os.fsencode(self.files.socket)) > 107:  # unix(7), sun_path
            raise Unavailable(
                f"the path of etcd's socket is too long ({self.files.socket}): use a --data-root with a shorter path"
            )
        if self._keeper is not None:
            if not force_new_cluster:
                return
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            self.files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.files.folder.chmod(0o700)
        except OSError as e:
            raise Unavailable(f"cannot use {self.files.folder}: {e.strerror or e}") from e
        pid = self.running()
        if pid is not None and force_new_cluster:
            await _end(pid)
            pid = None
        if pid is None:
            pid = await self._spawn(program, force_new_cluster)
        self._keeper = asyncio.create_task(self._keep(program, pid), name="etcd")

    async def stop(self) -> None:
        """End the member in order; its data stays."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        pid = self.running()
        if pid is not None:
            await _end(pid)
        if self._child is not None:
            await self._child.wait()
            self._child = None
        with contextlib.suppress(OSError):
            self.files.pid.unlink(missing_ok=True)

    def running(self) -> int | None:
        """The pid of the member of this very folder, whoever started it."""
        try:
            pid = int(self.files.pid.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"--data-dir={self.files.data}".encode() in argv else None

    async def wait_ready(self, client: EtcdClient, timeout: float) -> None:
        """Until it answers as a member with a vote and a quorum. Raises Unavailable after `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                await client.range("overlace/", timeout=2.0)
                return
            except EtcdError as e:
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(
                        f"etcd on this manager is not ready after {timeout:g} s: {e.message}; are the other managers "
                        f"reachable at TCP port {PEER_PORT}, and this one for them at {self.config.peer_url}?"
                    ) from e
            await asyncio.sleep(0.1)

    # -- its life --------------------------------------------------------------------------------------------

    async def _spawn(self, program: str, force_new_cluster: bool = False) -> int:
        with contextlib.suppress(OSError):
            self.files.socket.unlink(missing_ok=True)  # of one that was killed; the next cannot bind over it
        try:
            self._child = child = await asyncio.create_subprocess_exec(
                *plan_argv(program, self.config, self.files, force_new_cluster),
                cwd=self.files.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a signal to the daemon's group is not for it
                env={"PATH": os.environ.get("PATH", os.defpath)},  # ETCD_* variables would change its flags
            )
            new = self.files.pid.with_suffix(".new")
            new.write_text(f"{child.pid}\n")
            new.replace(self.files.pid)
        except OSError as e:
            raise Unavailable(f"cannot start etcd: {e.strerror or e}") from e
        return child.pid

    async def _keep(self, program: str, pid: int) -> None:
        pause = _PAUSE[0]
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            code = await self._ended(pid)
            if clock() - started > _STEADY_SECONDS:
                pause = _PAUSE[0]
            log.warning("etcd ended, starting it again", code=code, pause=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])
            while True:
                try:
                    pid = self.running() or await self._spawn(program)
                    break
                except Unavailable as e:
                    log.warning("etcd does not start, trying again", reason=e.message)
                    await asyncio.sleep(_PAUSE[1])

    async def _ended(self, pid: int) -> int | None:
        """Waits for its end; its exit code when it was started by this daemon."""
        if self._child is not None and self._child.pid == pid:
            return await self._child.wait()
        await gone(pid)
        return None


def find_program() -> str:
    """Raises Unavailable naming what to install."""
    found = shutil.which("etcd") or shutil.which(
        "etcd", path="/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin"
    )
    if found is None:
        raise Unavailable("etcd is not installed here; several managers need it: apt-get install etcd-server")
    return found


async def gone(pid: int) -> None:
    """Until this process, which need not be our child, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _end(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await gone(pid)
                return
