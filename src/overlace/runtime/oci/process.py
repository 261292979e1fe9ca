"""Running the tools this runtime stands on (skopeo, umoci, runc, cp) without holding up the event loop.

Owns how a tool is started, awaited and its failure told. Must not know what any tool means.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Sequence

import msgspec

from overlace.model.errors import Internal, Unavailable

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Finished(msgspec.Struct, frozen=True):
    """How a tool ended: `code` as the shell counts (128+n for signal n)."""

    code: int
    stdout: bytes
    stderr: str


def tool_environment() -> dict[str, str]:
    """What a tool needs of our environment and no more; proxies are the administrator's word on how to reach
    registries.
    """
    kept = (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    )
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    environment["PATH"] = os.environ.get("PATH") or _PATH
    environment["HOME"] = "/root"
    environment["LC_ALL"] = "C"
    return environment


def find_tool(name: str) -> str | None:
    """Full path of a program, also in the sbin folders an ordinary PATH lacks."""
    return shutil.which(name) or shutil.which(name, path=_PATH)


def require_tool(name: str, package: str | None = None) -> str:
    """Full path of a program; raises Unavailable naming the Debian package to install."""
    path = find_tool(name)
    if path is None:
        raise Unavailable(
            f"{name} is not installed on this host: install it (Debian: apt install {package or name})"
        )
    return path


async def run_tool(
    argv: Sequence[str], *, pass_fds: Sequence[int] = (), timeout: float | None = None, cwd: str | None = None
) -> Finished:
    """Run to the end and collect output. A cancelled caller, or `timeout` seconds gone, kills the tool."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=tool_environment(),
            pass_fds=tuple(pass_fds),
            cwd=cwd,
        )
    except OSError as error:
        raise Internal(f"cannot run {argv[0]}: {error.strerror or error}") from error
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        await _kill(process)
        raise Internal(
            f"{os.path.basename(argv[0])} did not end within {timeout:g} s and was killed"
        ) from None
    except BaseException:
        await asyncio.shield(_kill(process))
        raise
    code = process.returncode or 0
    return Finished(code if code >= 0 else 128 - code, stdout, stderr.decode("utf-8", "replace").strip())


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    let_go(process)
    await process.wait()


async def exit_of(process: asyncio.subprocess.Process) -> int:
    """Wait for a tool's own end and return its code. `process.wait()` waits until its pipes are closed as well, and
    a child it left behind may hold them for as long as it likes."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        descriptor = -1
    if descriptor >= 0:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    while process.returncode is None:  # noqa: ASYNC110  asyncio hears of it in a moment, and tells nobody
        await asyncio.sleep(0.001)
    return process.returncode


def let_go(process: asyncio.subprocess.Process) -> None:
    """Close our ends of a tool's pipes, whoever still holds the others; what still runs is killed."""
    process._transport.close()  # type: ignore[attr-defined]
