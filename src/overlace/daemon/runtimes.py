"""Which container runtime this host has, decided once and kept: containers of one are unknown to the other.

Owns the choice and its file. Must not know what a runtime does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from overlace.cli.daemon import DaemonOptions
from overlace.cli.engine import Engine as EngineApi
from overlace.daemon.facts import System
from overlace.daemon.host import instance_id, platform_of
from overlace.model.errors import FailedPrecondition, OverlaceError
from overlace.model.system import ON_WINDOWS
from overlace.runtime.base import Runtime
from overlace.runtime.docker.runtime import DockerRuntime
from overlace.runtime.oci.files import write_atomically

Kind = Literal["oci", "docker"]
_FILE = "runtime"


def choose_kind(wanted: str, kept: str, engine_answers: bool, containers: bool) -> Kind:
    """`wanted` as on the command line, `kept` from the last start (or empty). Pure.

    Raises FailedPrecondition for another runtime than the one this host's `containers` were made with.
    """
    if wanted == "auto":
        wanted = kept if kept and containers else "docker" if engine_answers else "oci"
    if kept and kept != wanted and containers:
        raise FailedPrecondition(
            f"--runtime {wanted}: this host's containers were made by runtime {kept} and would be lost; leave the swarm "
            f"first (docker swarm leave), or go on with --runtime {kept}"
        )
    return "docker" if wanted == "docker" else "oci"


def make_runtime(options: DaemonOptions, system: System) -> Runtime:
    """The runtime of this host, which is `system`. Raises FailedPrecondition (see `choose_kind`, `ensure_hold`)."""
    data_root, exec_root = Path(options.data_root), Path(options.exec_root)
    folders: dict[str, Path] = {
        "oci": data_root / "containers",
        "docker": data_root / "docker" / "containers",
    }
    holders = [name for name, folder in folders.items() if folder.is_dir() and any(folder.iterdir())]
    kept = holders[0] if holders else ""
    with contextlib.suppress(OSError):
        kept = (data_root / _FILE).read_text().strip()
    answers = options.runtime == "auto" and not options.emulate_windows and _answers(options.docker_host)
    kind = choose_kind(options.runtime, kept, answers, bool(holders))
    runtime: Runtime
    if kind == "docker":
        if not ON_WINDOWS:
            from overlace.runtime.docker.gate import ensure_hold

            ensure_hold()
        runtime = DockerRuntime(
            options.docker_host, data_root / "docker", exec_root / "docker", platform=platform_of(system)
        )
    else:
        from overlace.runtime.oci.runtime import OciRuntime

        runtime = OciRuntime(
            data_root,
            exec_root,
            cgroup_parent=f"/overlace/{instance_id(data_root)}",
            insecure_registries=options.insecure_registries,
            platform=platform_of(system),
        )
    if kept != kind:
        data_root.mkdir(parents=True, exist_ok=True)
        write_atomically(data_root / _FILE, f"{kind}\n".encode())
    return runtime


def _answers(host: str) -> bool:
    try:
        return bool(EngineApi(host).call("GET", "/_ping", timeout=3) == "OK")
    except OverlaceError:
        return False
