"""All that a Windows worker imports can be imported without what only Linux has: modules, names of `os`, libc."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, importlib, os, socket, sys
import aiohttp.web, cryptography.x509, dns.message, structlog, yaml, prometheus_client, click, msgspec, sqlite3, asyncio

for name in ("fcntl", "grp", "pwd", "pty", "tty", "termios", "resource", "pyroute2"):
    sys.modules[name] = None  # `import NAME` raises ImportError
for name in dir(os):
    if name in ("geteuid", "getuid", "getegid", "uname", "sysconf", "fork", "mkfifo", "chown", "fchown", "fchmod",
                "pidfd_open", "sched_getaffinity", "sendfile", "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_PATH",
                "O_DIRECTORY", "setsid", "getpgid", "killpg", "statvfs", "mknod"):
        delattr(os, name)
del socket.AF_UNIX
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGWINCH", "SIGPIPE"):
    import signal
    delattr(signal, name)

def library(name, *args, **more):
    raise OSError(f"no {name} on Windows")

ctypes.CDLL = library
from overlace.model import system
system.ON_WINDOWS = True
for name in MODULES:
    importlib.import_module(name)
from overlace.cli.daemon import check_options, DEFAULT_DOCKER_HOST
assert DEFAULT_DOCKER_HOST.startswith("npipe:"), DEFAULT_DOCKER_HOST
linux = [n for n in sys.modules if n.startswith("overlace.network.linux.")]
assert not linux, f"a Windows worker has no use for {linux}"
"""

MODULES = (
    "overlace.cli.main",
    "overlace.cli.daemon",
    "overlace.cli.version",
    "overlace.daemon",
    "overlace.daemon.engine",
    "overlace.daemon.metrics",
    "overlace.daemon.process",
    "overlace.daemon.scm",
    "overlace.daemon.service",
    "overlace.daemon.windows",
    "overlace.api.server",
    "overlace.runtime.docker.runtime",
    "overlace.network.windows.adapters",
    "overlace.network.windows.driver",
    "overlace.network.windows.host",
    "overlace.network.windows.library",
    "overlace.network.windows.ports",
)


def test_a_windows_worker_can_be_imported() -> None:
    program = PROGRAM.replace("MODULES", repr(MODULES))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
