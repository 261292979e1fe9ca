"""Docker's own daemon, to compare with: the machine's, or one taken out of Debian's packages without installing it.

Owns finding and fetching it. Must not start it (swarms.py does), and starts no service.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from overlace.lab.shell import run
from overlace.model.errors import Internal, OverlaceError, Unavailable

CACHE = Path(__file__).parents[2] / ".venv/docker-peer"
NEEDED = ("dockerd", "containerd", "containerd-shim-runc-v2", "runc", "iptables")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class Docker(msgspec.Struct, frozen=True):
    """A dockerd that can be started with this environment."""

    dockerd: str
    environment: dict[str, str]


def ensure_docker(say: Callable[[str], None], *, fetch: bool = False) -> Docker:
    """The machine's dockerd when it has all of one (and not `fetch`), else one extracted into the virtualenv.

    Raises Unavailable saying what is missing, with apt's words.
    """
    base = dict(os.environ, PATH=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if not fetch and not _missing(base["PATH"]):
        return Docker(_which("dockerd", base["PATH"]), base)
    environment = _extracted(base)
    if _missing(environment["PATH"]):
        say("docker: no daemon here; taking one out of Debian's packages")
        try:
            _extract()
        except OverlaceError as error:
            raise Unavailable(f"no dockerd on this machine, and none from its packages: {error}") from error
    if missing := _missing(environment["PATH"]):
        raise Unavailable(
            f"no dockerd to compare with: {', '.join(missing)} not found; install package docker.io by hand"
        )
    return Docker(_which("dockerd", environment["PATH"]), environment)


def _which(program: str, path: str) -> str:
    return shutil.which(program, path=path) or ""


def _missing(path: str) -> list[str]:
    return [program for program in NEEDED if not _which(program, path)]


def _extracted(base: dict[str, str]) -> dict[str, str]:
    """The environment in which the extracted files are found: programs, libraries, iptables' extensions."""
    arch = f"{platform.machine()}-linux-gnu"
    programs = ":".join(str(CACHE / folder) for folder in ("usr/sbin", "usr/bin", "sbin", "bin"))
    libraries = ":".join(str(CACHE / folder) for folder in (f"usr/lib/{arch}", f"lib/{arch}"))
    return base | {
        "PATH": f"{programs}:{base['PATH']}",
        "LD_LIBRARY_PATH": libraries,
        "XTABLES_LIBDIR": f"{CACHE}/usr/lib/{arch}/xtables:/usr/lib/{arch}/xtables",
    }


def packages_to_fetch(simulation: str) -> list[str]:
    """The packages `apt-get --simulate install` would put on this machine."""
    return re.findall(r"^Inst (\S+) ", simulation, re.MULTILINE)


def _extract() -> None:
    install = ["apt-get", "--simulate", "-qq", "install", "--no-install-recommends", "docker.io", "iptables"]
    try:
        simulation = run(install, timeout=120)
    except Internal:  # a machine whose package lists were never fetched, or were cleaned
        run(["apt-get", "-qq", "-o", "Acquire::Retries=3", "update"], timeout=300, check=False)
        simulation = run(install, timeout=120)
    # Those it has already give it their programs where it needs them; dockerd may be one whose parts are missing.
    wanted = packages_to_fetch(simulation) or ["docker.io", "containerd", "runc", "iptables"]
    partial = CACHE.with_suffix(".new")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="overlace-docker-") as fetched:
        options = ["-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"]
        run(["env", "-C", fetched, "apt-get", *options, "download", *wanted], timeout=600)
        for package in sorted(Path(fetched).glob("*.deb")):
            run(["dpkg", "-x", str(package), str(partial)], timeout=120)
    # What Debian's alternatives would link.
    sbin = partial / "usr/sbin"
    if (sbin / "xtables-nft-multi").exists() and not (sbin / "iptables").exists():
        (sbin / "iptables").symlink_to("xtables-nft-multi")
        (sbin / "ip6tables").symlink_to("xtables-nft-multi")
    shutil.rmtree(CACHE, ignore_errors=True)
    partial.rename(CACHE)
