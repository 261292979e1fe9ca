"""Names on a Windows host while its agent is away: a process of its own that answers from the agent's disk.

    python -m overlace.daemon.standby FOLDER

Owns that process, and how an agent starts one, keeps it waiting and has it step aside. The agent binds the port while it
lives, so what runs is never two; sockets cannot be handed over as on Linux (network/linux/resolver), and between the two
there are the milliseconds of a bind. It knows what the agent knew last: its view and its records of tasks. It ends
when it is told to, or when its folder is gone. Nothing here needs Windows: it is tested on Linux, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import structlog

from overlace.agent.state import AgentState
from overlace.daemon.drivers import HostDriver
from overlace.model.errors import OverlaceError
from overlace.model.netview import NetView
from overlace.model.system import ON_WINDOWS
from overlace.network.records import Records
from overlace.network.windows.names import HostNames

log = structlog.get_logger(__name__)
SETTINGS, PLACE = "standby.json", "standby.place"
HOLD, QUIT = b"hold", b"quit"
WAIT_SECONDS = (
    30.0  # for a new process to say where it listens, and of a new process for an agent that holds it
)
LOOK_SECONDS = 1.0
# DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP (processthreadsapi.h): no console, and not ended with the agent's
_DETACHED = 0x00000008 | 0x00000200


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`address`, `port`, `datagrams_at`, `upstreams`, `search`: of HostNames. `state`: the agent's file; `tasks`: the
    folder of records. `secret`: who may speak to it."""

    address: str
    port: int
    datagrams_at: str
    upstreams: tuple[str, ...]
    search: tuple[str, ...]
    state: str
    tasks: str
    secret: str = ""


class Place(msgspec.Struct, frozen=True):
    """Where the process listens, on 127.0.0.1."""

    port: int
    secret: str


class Standby:
    """The agent's side; `folder` is private to this host's administrators. Calls are idempotent."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._held: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether one waits for this agent's end."""
        return self._held is not None

    async def relieve(self) -> None:
        """Have the one of an earlier agent step aside; back when it has let go of its sockets, or there is none."""
        found = await _connected(self._folder)
        if found is not None:
            reader, writer, place = found
            writer.write(QUIT + b" " + place.secret.encode() + b"\n")
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await reader.read()
            writer.close()
        (self._folder / PLACE).unlink(missing_ok=True)

    def start(self) -> None:
        """Start one beside this agent, which keeps it waiting while it lives."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="names in reserve")

    async def close(self) -> None:
        """The agent ends: from now on it answers."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._held is not None:
            self._held.close()
            self._held = None

    async def leave(self) -> None:
        """The node is no member any more."""
        await self.close()
        await self.relieve()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _keep(self) -> None:
        """Have one that waits, and another one when it is gone."""
        while True:
            try:
                await self._ensure()
            except (OSError, TimeoutError) as e:
                log.warning("nobody answers names if this agent ends", error=str(e) or type(e).__name__)
                await asyncio.sleep(WAIT_SECONDS)

    async def _ensure(self) -> None:
        """Start one and hold it; back when it has ended. Raises OSError, TimeoutError."""
        settings = msgspec.structs.replace(self._settings, secret=secrets.token_hex(16))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / PLACE).unlink(missing_ok=True)
        temporary = self._folder / (SETTINGS + ".new")
        temporary.write_bytes(msgspec.json.encode(settings))
        os.replace(temporary, self._folder / SETTINGS)
        self.process = await asyncio.to_thread(spawn, self._folder)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while (found := await _connected(self._folder)) is None:  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.process.kill()  # nobody holds it: it would answer beside the next agent
            raise
        reader, self._held, place = found
        self._held.write(HOLD + b" " + place.secret.encode() + b"\n")
        with contextlib.suppress(OSError):
            await reader.read()
        self._held.close()
        self._held = None
        await asyncio.to_thread(self.process.wait)
        log.warning("the process that would answer names if this agent ends has ended")


def standby_for(driver: HostDriver, data_root: Path, state: Path) -> Standby | None:
    """For the agent whose file `state` is; None where a resolver of its own answers (Linux hosts)."""
    names = getattr(driver, "names", None)
    if not isinstance(names, HostNames):
        return None
    settings = Settings(
        address=names.address,
        port=names.port,
        datagrams_at=names.datagrams_at,
        upstreams=names.upstreams,
        search=names.search,
        state=str(state),
        tasks=str(data_root / "network" / "tasks"),
    )
    return Standby(data_root / "network" / "standby", settings)


def spawn(folder: Path) -> subprocess.Popen[bytes]:
    """The process, which outlives this one. Raises OSError."""
    command = [sys.executable, "-m", "overlace.daemon.standby", str(folder)]
    null = subprocess.DEVNULL
    if ON_WINDOWS:
        return subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, creationflags=_DETACHED, close_fds=True
        )
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


async def _connected(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Place] | None:
    """To the process of this folder; None: there is none."""
    try:
        place = msgspec.json.decode((folder / PLACE).read_bytes(), type=Place)
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
    except (OSError, msgspec.MsgspecError):
        return None
    return reader, writer, place


class Process:
    """The process's side."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._names: HostNames | None = None
        self._holders = 0
        self._free = asyncio.Event()  # no agent holds it (any more)
        self._quit = asyncio.Event()

    async def run(self) -> None:
        server = await asyncio.start_server(self._speak, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        temporary = self._folder / (PLACE + ".new")
        temporary.write_bytes(msgspec.json.encode(Place(port, self._settings.secret)))
        os.replace(temporary, self._folder / PLACE)
        work = [asyncio.create_task(self._answer()), asyncio.create_task(self._watch())]
        try:
            await self._quit.wait()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self._names is not None:
                await self._names.close()
            server.close()  # whoever told it to quit reads the end of the connection now

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            word, _, secret = (await reader.readline()).strip().partition(b" ")
            if not secrets.compare_digest(secret, self._settings.secret.encode()):
                return
            if word == QUIT:
                self._quit.set()
                await asyncio.Event().wait()  # until the process ends, its sockets are closed first
            elif word == HOLD:
                self._holders += 1
                with contextlib.suppress(OSError):
                    await reader.read()
                self._holders -= 1
                if not self._holders:
                    self._free.set()
        finally:
            writer.close()

    async def _answer(self) -> None:
        """Once nobody holds it: read what the agent knew, and answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.wait()
        while self._holders:
            self._free.clear()
            await self._free.wait()
        s = self._settings
        names = HostNames(s.address, s.port, s.upstreams, s.search, s.datagrams_at)
        view = await self._known()
        records = Records(Path(s.tasks))
        records.load()
        names.update(view, None)
        for record in records:
            names.know(record)
        self._names = names
        while not await names.serve():  # noqa: ASYNC110  another process has the port
            await asyncio.sleep(0.05)
        log.info("the agent is away: names are answered from what it knew", tasks=len(records.ids()))

    async def _known(self) -> NetView:
        """The view the agent had last, read again until the disk gives it."""
        while True:
            try:
                state = AgentState(Path(self._settings.state))
            except OverlaceError as e:
                log.warning("the agent's view cannot be read", error=e.message)
                await asyncio.sleep(LOOK_SECONDS)
                continue
            try:
                return state.view()
            finally:
                state.close()

    async def _watch(self) -> None:
        while (self._folder / SETTINGS).exists():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        self._quit.set()


def main(folder: str) -> None:
    settings = msgspec.json.decode((Path(folder) / SETTINGS).read_bytes(), type=Settings)
    asyncio.run(Process(Path(folder), settings).run())


if __name__ == "__main__":
    main(sys.argv[1])
