"""Running another program in a container that runs: `docker exec`.

Owns what such a program gets (the container's own environment, user, folder and limits, changed as asked), its
pipes or terminal, and its exit code. The OCI runtime waits until nobody holds the program's output any more, so a
process left in the background keeps it from ending. `exec_process` is pure. Must not know HTTP nor when a container ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import secrets
import signal
import struct
import termios
import tty
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from overlace.model.errors import Conflict, Internal, InvalidArgument
from overlace.runtime.base import ExecConfig, ExecOutput
from overlace.runtime.oci import defaults
from overlace.runtime.oci.prepare import user_of
from overlace.runtime.oci.process import exit_of, let_go, tool_environment
from overlace.runtime.oci.shim import Shim
from overlace.runtime.oci.slots import Slot
from overlace.runtime.oci.spec import container_path, merge_environment
from overlace.runtime.oci.users import User

_BLOCK = 32768
_LINGER = 1.0  # seconds its output is waited for when it ended and left a process that holds the pipe
_NOT_FOUND = re.compile(r"executable file not found|no such file or directory|cannot find the file", re.I)
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")
_NOT_RUNNABLE = re.compile(r"permission denied|exec format error|is a directory|not a directory", re.I)


def exec_process(
    process: Mapping[str, Any], asked: ExecConfig, user: User | None, own_home: bool
) -> dict[str, Any]:
    """The OCI runtime's `process` of a program: the container's own (from its config.json), changed as asked.

    `user` None: the container's. `own_home`: the container's HOME was said, not looked up.
    """
    inherited = list(process["env"])
    if user is not None and not own_home:
        inherited = [entry for entry in inherited if not entry.startswith("HOME=")] + [f"HOME={user.home}"]
    if asked.tty and not any(entry.startswith("TERM=") for entry in inherited):
        inherited.append("TERM=xterm")
    made = dict(process) | {
        "terminal": asked.tty,
        "args": list(asked.argv),
        "env": list(merge_environment(inherited, asked.env)),
        "cwd": asked.workdir or process["cwd"],
    }
    if user is not None:
        made["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional)}
    kept = list(defaults.ALL_CAPABILITIES) if asked.privileged else list(process["capabilities"]["bounding"])
    effective = kept if made["user"]["uid"] == 0 else []
    made["capabilities"] = {"bounding": kept, "effective": effective, "permitted": effective}
    if asked.privileged:
        made["noNewPrivileges"] = False
    if asked.tty and asked.size:
        made["consoleSize"] = {"height": asked.size[0], "width": asked.size[1]}
    return made


def exec_failure(words: str) -> tuple[str, int]:
    """(what Docker says, exit code as a shell would give) of a program the runtime could not run. Pure."""
    code = 127 if _NOT_FOUND.search(words) else 126 if _NOT_RUNNABLE.search(words) else 255
    return f"OCI runtime exec failed: {words}", code


def whole_line_ends(data: bytes, before: bytes) -> bytes:
    """`data` with a carriage return before every newline that has none; `before`: what came just before it. Pure."""
    made = _BARE_NEWLINE.sub(b"\r\n", data)
    return made[1:] if data.startswith(b"\n") and before.endswith(b"\r") else made


class OciExec:
    """Implements `runtime.base.Exec`. One reader of `output` at a time."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        folder: Path,
        streams: Sequence[tuple[str, asyncio.StreamReader]],
        stdin: asyncio.StreamWriter | None,
        terminal: int,
    ) -> None:
        self._process = process
        self._folder = folder
        self._streams = streams
        self._stdin = stdin
        self._terminal = terminal
        self._pid = 0
        self._code: asyncio.Future[int] = asyncio.ensure_future(self._end())

    @property
    def pid(self) -> int:
        """The program's pid on this host, 0 when it is not known (yet)."""
        if not self._pid:
            with contextlib.suppress(OSError, ValueError):
                self._pid = int((self._folder / "pid").read_text())
        return self._pid

    async def output(self) -> AsyncIterator[ExecOutput]:
        queue: asyncio.Queue[ExecOutput | None] = asyncio.Queue(8)
        moved = 0

        async def pump(name: str, reader: asyncio.StreamReader) -> None:
            nonlocal moved
            before = b""
            while data := await reader.read(_BLOCK):
                if self.refusal():
                    continue  # the runtime's own words; they come once, in Docker's form
                if self._terminal_open and _ends_lines_for(self._terminal):
                    data, before = whole_line_ends(data, before), data[-1:]
                await queue.put(ExecOutput(name, data))  # type: ignore[arg-type]  # stdout or stderr
                moved += 1

        async def pump_all() -> None:
            pumps = [asyncio.create_task(pump(name, reader)) for name, reader in self._streams]
            try:
                await self.wait()
                while True:
                    before = moved
                    _, left = await asyncio.wait(pumps, timeout=_LINGER)
                    if not left or (moved == before and queue.empty()):
                        break
            finally:
                for one in pumps:
                    one.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            said = self.refusal()
            if said:
                await queue.put(ExecOutput("stderr", said.encode() + b"\n"))
            await queue.put(None)

        feeder = asyncio.create_task(pump_all())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """More of its standard input; nothing when it reads none (any more)."""
        if self._stdin is None:
            return
        with contextlib.suppress(OSError):
            self._stdin.write(data)
            await self._stdin.drain()

    def close_stdin(self) -> None:
        if self._stdin is not None and not self._terminal_open:
            self._stdin.close()

    @property
    def _terminal_open(self) -> bool:
        return self._terminal >= 0

    def resize(self, height: int, width: int) -> None:
        """Raises Conflict when it has no terminal."""
        if not self._terminal_open:
            raise Conflict("cannot resize: the exec has no terminal")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGWINCH)

    def refusal(self) -> str:
        """Why the program could not be run, in Docker's words; empty when it was."""
        if self.pid:
            return ""
        words = _last_error(self._folder / "log")
        return exec_failure(words)[0] if words else ""

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def _end(self) -> int:
        code = await exit_of(self._process)
        if self.refusal():
            return exec_failure(_last_error(self._folder / "log"))[1]
        return code if code >= 0 else 128 - code

    async def close(self) -> None:
        """Let go of it, ended or not."""
        self._code.cancel()
        let_go(self._process)
        if self._stdin is not None:
            self._stdin.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        for name in ("process.json", "log", "pid"):
            (self._folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _pass_bytes(terminal: int) -> None:
    """Have what is typed and said pass it as it is: the container's own terminal echoes, edits and ends lines.

    runc takes carriage returns away from that terminal (ONLCR) and counts on this one to add them, but only once
    the program runs: a shell that was quicker and restores what it saw keeps them, and they would come twice. So this
    one adds none and `whole_line_ends` does. crun, which leaves that terminal alone, switches OPOST off here.
    """
    tty.setraw(terminal)
    attributes = termios.tcgetattr(terminal)
    attributes[1] = attributes[1] & ~termios.ONLCR | termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def _ends_lines_for(terminal: int) -> bool:
    """The runtime counts on our terminal for carriage returns: see `_pass_bytes`."""
    return bool(termios.tcgetattr(terminal)[1] & termios.OPOST)


class _TerminalReader(asyncio.StreamReaderProtocol):
    """A terminal whose other end is closed says EIO: that is its end, and what came before is still to be read."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None)


def _last_error(log: Path) -> str:
    """The runtime's own words (its log, in JSON), empty when it had none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", "")).strip()
    return ""


async def start_exec(shim: Shim, slot: Slot, asked: ExecConfig, *, windows: bool) -> OciExec:
    """Run it in a running container. Raises InvalidArgument, Internal."""
    check_exec(asked)
    places, resolved = slot.places, slot.record.resolved
    user = None
    if asked.user:
        wished = msgspec.structs.replace(resolved, user=asked.user)
        user = user_of(wished, slot.container.config, places.rootfs, windows=windows)
    own_home = any(entry.startswith("HOME=") for entry in resolved.env)
    container = json.loads((places.bundle / "config.json").read_bytes())
    asked = msgspec.structs.replace(asked, workdir=container_path(asked.workdir, windows))
    process = exec_process(container["process"], asked, user, own_home)
    folder = places.bundle / "execs" / secrets.token_hex(8)
    folder.mkdir(mode=0o700, parents=True)
    (folder / "process.json").write_bytes(msgspec.json.encode(process))
    argv = [
        *shim.command, "--log", str(folder / "log"), "--log-format", "json", "exec",
        "--process", str(folder / "process.json"), "--pid-file", str(folder / "pid"), slot.id,
    ]  # fmt: skip
    try:
        if asked.tty:
            return await _with_terminal(argv, folder, asked)
        return await _with_pipes(argv, folder, asked)
    except OSError as error:
        raise Internal(f"cannot run {argv[0]}: {error.strerror or error}") from error


async def _with_pipes(argv: Sequence[str], folder: Path, asked: ExecConfig) -> OciExec:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if asked.stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tool_environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    streams = [("stdout", process.stdout), ("stderr", process.stderr)]
    return OciExec(process, folder, streams, process.stdin, -1)


async def _with_terminal(argv: Sequence[str], folder: Path, asked: ExecConfig) -> OciExec:
    """The runtime makes the program's terminal and copies between it and ours, sizes included."""
    ours, theirs = pty.openpty()
    try:
        _pass_bytes(theirs)
        if asked.size:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *asked.size, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=theirs, stdout=theirs, stderr=theirs, env=tool_environment(), start_new_session=True
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: _TerminalReader(reader), os.fdopen(os.dup(ours), "rb", buffering=0))
    writer = None
    if asked.stdin:
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(ours), "wb", buffering=0)
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
    return OciExec(process, folder, [("stdout", reader)], writer, ours)


def check_exec(asked: ExecConfig) -> None:
    """Raises InvalidArgument in Docker's words."""
    if not asked.argv or not asked.argv[0]:
        raise InvalidArgument("No exec command specified")
    if asked.workdir and not asked.workdir.startswith("/"):
        raise InvalidArgument(f"OCI runtime exec failed: cwd must be an absolute path, not '{asked.workdir}'")
    for entry in asked.env:
        if not entry or entry.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {entry}")
