"""The OCI runtime (runc or crun) and conmon, the shim that holds a container while our daemon comes and goes.

Owns their command lines, pid and exit files, and the choice between runc and crun. Must not know images,
mounts or health.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlace.model.errors import Internal, InvalidArgument, OverlaceError, Unavailable
from overlace.runtime.oci.process import Finished, find_tool, require_tool, run_tool, tool_environment

_CREATE_TIMEOUT = 60.0
_CALL_TIMEOUT = 30.0
_NOT_RUNNABLE = re.compile(
    r"executable file .*not found|no such file or directory|permission denied|exec format error"
    r"|is a directory|not a directory",
    re.I,
)


class Exit(msgspec.Struct, frozen=True):
    """How a container's first process ended: 128+n for signal n. `at` in ns since the epoch."""

    code: int
    at: int


class StartRefused(InvalidArgument):
    """The container's own program could not be run; `exit_code` as a shell would give (126, 127)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Running(msgspec.Struct, frozen=True):
    """Host pids of a created container and its shim."""

    pid: int
    shim_pid: int


async def choose_runtime(scratch: Path, cgroup_parent: str) -> str:
    """Path of the first of runc, crun that really runs a container here (cgroups differ between hosts: only
    trying tells).

    Raises Unavailable with what each of them said.
    """
    said = []
    for name in ("runc", "crun"):
        path = find_tool(name)
        if path is None:
            said.append(f"{name}: not installed")
            continue
        try:
            problem = await _probe(path, scratch / f"probe-{name}", cgroup_parent)
        except OverlaceError as error:
            problem = error.message
        if not problem:
            return path
        said.append(f"{name}: {problem}")
    raise Unavailable(
        f"no OCI runtime works on this host ({'; '.join(said)}): install runc (Debian: apt install runc)"
    )


async def _probe(path: str, folder: Path, cgroup_parent: str) -> str:
    """Run `true` from the host's own folders in a container; empty when that worked, else the runtime's
    words.
    """
    await asyncio.to_thread(shutil.rmtree, folder, True)
    (folder / "rootfs").mkdir(parents=True)
    bind = [item for item in ("/bin", "/usr", "/lib", "/lib64") if os.path.isdir(item)]
    mounts: list[dict[str, object]] = [
        {"destination": item, "type": "bind", "source": item, "options": ["rbind", "ro"]} for item in bind
    ]
    mounts.append({"destination": "/proc", "type": "proc", "source": "proc"})
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    identity = f"probe-{os.getpid()}-{os.path.basename(path)}"
    document = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": f"{cgroup_parent}/{identity}",
            "resources": {"pids": {"limit": 64}},
        },
    }
    (folder / "config.json").write_text(json.dumps(document))
    base = [path, "--root", str(folder / "state")]
    try:
        finished = await run_tool([*base, "run", "--bundle", str(folder), identity], timeout=_CALL_TIMEOUT)
        return "" if finished.code == 0 else _last_words(finished.stderr)
    finally:
        await run_tool([*base, "delete", "--force", identity], timeout=_CALL_TIMEOUT)
        await asyncio.to_thread(shutil.rmtree, folder, True)


def _last_words(stderr: str) -> str:
    """The last message of runc's or crun's log, without time and level. Pure."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if not lines:
        return "no message"
    line = lines[-1]
    found = re.search(r'msg=("(?:[^"\\]|\\.)*")', line)
    if found:
        with contextlib.suppress(ValueError):
            line = json.loads(found[1])
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            line = str(json.loads(line).get("msg", line))
    return line.strip()


def start_error(words: str) -> OverlaceError:
    """What a failed create means: the program's own fault (Docker: 400, exit 126, 127) or ours. Pure."""
    message = f"OCI runtime create failed: {words}"
    program = "exec:" in words or "executable file" in words or "exec failed" in words
    if program and _NOT_RUNNABLE.search(words):
        missing = re.search(r"not found|no such file", words, re.I)
        return StartRefused(message, 127 if missing else 126)
    return Internal(message)


class Shim:
    """Verbs on containers by id; `bundles/<id>` below `exec_root` holds what is alive of one."""

    def __init__(self, runtime: str, exec_root: Path) -> None:
        self.runtime = runtime
        self._state = exec_root / "oci"
        self._base = [runtime, "--root", str(self._state)]

    @property
    def command(self) -> list[str]:
        """How every command line of the OCI runtime begins."""
        return [*self._base]

    async def create(
        self,
        container_id: str,
        bundle: Path,
        log_path: Path | None,
        log_max: int,
        *,
        tty: bool,
        stdin: bool,
        once: bool = False,
    ) -> Running:
        """Create from `bundle/config.json`, its output kept at `log_path` (None: nowhere); when this returns the
        program waits for `start`. `once`: its standard input ends with that of the first who attaches.

        Raises StartRefused when the program cannot be run, Internal or Unavailable otherwise; nothing stays
        behind.
        """
        conmon = require_tool("conmon")
        for stale in (bundle / "exit" / container_id, bundle / "pid", bundle / "shim.pid", bundle / "oom"):
            stale.unlink(missing_ok=True)
        (bundle / "exit").mkdir(exist_ok=True)
        argv = [
            conmon,
            "--api-version",
            "1",
            "--cid",
            container_id,
            "--cuuid",
            container_id,
            "--name",
            container_id[:12],
            "--runtime",
            self.runtime,
            "--runtime-arg",
            "--root",
            "--runtime-arg",
            str(self._state),
            "--bundle",
            str(bundle),
            "--exit-dir",
            str(bundle / "exit"),
            "--container-pidfile",
            str(bundle / "pid"),
            "--conmon-pidfile",
            str(bundle / "shim.pid"),
            "--log-path",
            "none" if log_path is None else f"k8s-file:{log_path}",
            "--log-size-max",
            str(log_max),
            "--log-level",
            "error",
            "--full-attach",
            "--no-sync-log",
            *(["--terminal"] if tty else []),
            *(["--stdin"] if stdin else []),
            *(["--leave-stdin-open"] if stdin and not once else []),
        ]
        try:
            answer = await asyncio.wait_for(self._launch(argv, bundle), _CREATE_TIMEOUT)
            if answer.data <= 0:
                raise start_error(
                    _last_words(answer.message or (bundle / "shim.err").read_text(errors="replace"))
                )
            return Running(answer.data, int((bundle / "shim.pid").read_text()))
        except TimeoutError:
            await self.discard(container_id, bundle)
            raise Internal(
                f"creating container {container_id[:12]} took more than {_CREATE_TIMEOUT:g} s"
            ) from None
        except BaseException:
            await asyncio.shield(self.discard(container_id, bundle))
            raise

    async def discard(self, container_id: str, bundle: Path) -> None:
        """End a container and its shim whatever state they are in; absent is fine."""
        await self.delete(container_id)
        descriptor = open_shim(bundle, container_id)
        if descriptor is not None:
            kill_shim(descriptor)
            os.close(descriptor)

    async def _launch(self, argv: Sequence[str], bundle: Path) -> _Answer:
        """Start conmon and read from its pipe what became of the container (conmon(8), `_OCI_SYNCPIPE`)."""
        ours, theirs = os.pipe()
        errors = os.open(bundle / "shim.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env={**tool_environment(), "_OCI_SYNCPIPE": str(theirs)},
                pass_fds=(theirs,),
                cwd=str(bundle),
                start_new_session=True,
            )
            os.close(theirs)
            theirs = -1
            text = await _first_line(ours)
            await process.wait()
        except OSError as error:
            raise Internal(f"cannot run conmon: {error.strerror}") from error
        finally:
            for descriptor in (ours, theirs, errors):
                if descriptor >= 0:
                    os.close(descriptor)
        try:
            return msgspec.json.decode(text, type=_Answer)
        except msgspec.DecodeError:
            return _Answer()

    async def start(self, container_id: str) -> None:
        """Let the created program run. Raises Internal with the runtime's words."""
        finished = await self._call("start", container_id)
        if finished.code != 0:
            raise start_error(_last_words(finished.stderr))

    async def kill(self, container_id: str, number: int) -> None:
        """Signal the container's first process; one that just ended is fine."""
        finished = await self._call("kill", container_id, str(number))
        gone = ("process already finished", "not running", "does not exist", "no such process")
        if finished.code != 0 and not any(sign in finished.stderr.lower() for sign in gone):
            raise Internal(f"cannot signal container {container_id[:12]}: {_last_words(finished.stderr)}")

    async def delete(self, container_id: str) -> None:
        """Kill what is left of it and free its cgroup; absent is fine."""
        if (self._state / container_id).exists():
            await self._call("delete", "--force", container_id)

    async def status(self, container_id: str) -> str:
        """`created`, `running`, `stopped`, `paused`, or empty for one the runtime does not know."""
        finished = await self._call("state", container_id)
        if finished.code != 0:
            return ""
        with contextlib.suppress(ValueError):
            return str(json.loads(finished.stdout)["status"])
        return ""

    def exec_argv(self, container_id: str, argv: Sequence[str], pid_file: Path) -> list[str]:
        """The command line that runs `argv` inside, as the container's own user, environment and folder."""
        return [*self._base, "exec", "--pid-file", str(pid_file), container_id, *argv]

    async def version(self) -> dict[str, str]:
        """`{"runc": "1.1.5", "conmon": "2.1.6"}`: first words of each tool's version line."""
        found = {}
        for tool in (self.runtime, find_tool("conmon") or ""):
            if tool:
                finished = await run_tool([tool, "--version"], timeout=_CALL_TIMEOUT)
                match = re.search(r"version:? (\S+)", finished.stdout.decode("utf-8", "replace"))
                found[os.path.basename(tool)] = match[1] if match else "unknown"
        return found

    async def _call(self, *arguments: str) -> Finished:
        return await run_tool([*self._base, *arguments], timeout=_CALL_TIMEOUT)


class _Answer(msgspec.Struct):
    """conmon's report (api version 1): in `data` the container's pid, or a negative number with the runtime's
    log.
    """

    data: int = -1
    message: str = ""


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _first_line(descriptor: int) -> bytes:
    """Read a pipe up to a newline or its end, off the event loop's back."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    data = bytearray()
    while b"\n" not in data:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def read_exit(bundle: Path, container_id: str) -> Exit | None:
    """What the shim wrote when the container ended; None when it did not come to that."""
    path = bundle / "exit" / container_id
    try:
        code = int(path.read_text().strip())
        return Exit(code if code >= 0 else 255, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


def open_shim(bundle: Path, container_id: str) -> int | None:
    """A pidfd of the container's living shim; readable when the shim has ended. None when there is none."""
    try:
        pid = int((bundle / "shim.pid").read_text())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    try:
        ours = container_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        alive = ours and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        alive = False
    if not alive:
        os.close(descriptor)
        return None
    return descriptor


def kill_shim(descriptor: int) -> None:
    """End a shim that should be gone by now."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def oom_killed(cgroup_path: str) -> bool:
    """Whether the kernel's OOM killer took a process of this cgroup (v1: memory.oom_control, v2:
    memory.events).
    """
    for path in (
        f"/sys/fs/cgroup/memory{cgroup_path}/memory.oom_control",
        f"/sys/fs/cgroup{cgroup_path}/memory.events",
    ):
        try:
            rows = [line.split() for line in Path(path).read_text().splitlines()]
        except OSError:
            continue
        return any(row[0] == "oom_kill" and int(row[1]) > 0 for row in rows if len(row) == 2)
    return False


def swap_limit_supported() -> bool:
    """Whether this kernel can limit swap per cgroup."""
    return os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") or os.path.exists(
        "/sys/fs/cgroup/cgroup.controllers"
    )
