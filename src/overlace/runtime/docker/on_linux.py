"""Containers of a Docker Engine on Linux: held at a gate, their files bound from this host.

Owns what is on disk of a container, and the looking into its namespaces and root. Must not call the engine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overlace.model.errors import FailedPrecondition, Internal, InvalidArgument
from overlace.runtime.base import Interface
from overlace.runtime.docker import convert
from overlace.runtime.docker.gate import Gate, append_hosts, why_not_run
from overlace.runtime.docker.system import Asked, Made
from overlace.runtime.oci import prepare
from overlace.runtime.oci.records import Places
from overlace.runtime.oci.spec import resolve, signal_number
from overlace.runtime.oci.stats import parse_interfaces


class Linux:
    """Implements `System`."""

    gated = True
    erase_files = staticmethod(prepare.erase_files)
    remove_places = staticmethod(prepare.remove_places)

    def make(self, asked: Asked) -> Made:
        config, places = asked.config, asked.places
        resolved = resolve(config, asked.image.config)
        places.data.mkdir(mode=0o711, parents=True)
        places.bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
        gate = gate_of(places)
        gate.make()
        files, _ = prepare.file_binds(places, config.files, windows=False)
        for mount in config.mounts:
            if mount.type == "bind":
                prepare.check_source(mount)
        body = convert.create_body(config, resolved.argv, str(gate.folder), files, asked.owner, asked.version)
        return Made(resolved.argv, body)

    def is_released(self, places: Places) -> bool:
        return gate_of(places).is_open

    def before_start(self, places: Places) -> None:
        gate_of(places).shut()

    def sandbox(self, docker_id: str, found: Mapping[str, Any], gates: Sequence[Path]) -> Path:
        """An engine on another machine has other processes under its numbers: nothing may be attached to those."""
        pid = int(found["State"]["Pid"])
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            groups = ""
        if docker_id not in groups and not _same_root(pid, gates):
            raise FailedPrecondition(
                f"process {pid} is no container {docker_id[:12]} of this host's Docker Engine: the engine must run on "
                "this machine, and not inside a container"
            )
        return Path(f"/proc/{pid}/ns/net")

    def release(
        self,
        places: Places,
        argv: Sequence[str],
        found: Mapping[str, Any],
        resolv_conf: str,
        hosts: Sequence[tuple[str, str]],
    ) -> None:
        _check_program(argv, found)
        try:
            if resolv_conf and found.get("ResolvConfPath"):
                Path(found["ResolvConfPath"]).write_text(resolv_conf)
            if hosts and found.get("HostsPath"):
                append_hosts(Path(found["HostsPath"]), hosts)
        except OSError as error:
            raise Internal(f"cannot write {error.filename}: {error.strerror}") from error
        gate_of(places).open()

    def signal(self, name: str) -> str:
        return str(signal_number(name))

    def interfaces(self, pid: int) -> tuple[Interface, ...] | None:
        try:
            return parse_interfaces(Path(f"/proc/{pid}/net/dev").read_text())
        except OSError:
            return None


def gate_of(places: Places) -> Gate:
    """The gate at which this container is held."""
    return Gate(places.data / "gate")


def _same_root(pid: int, gates: Sequence[Path]) -> bool:
    """With a cgroup namespace the id is not in the path; our gate, seen through the process's root, tells as much."""
    with contextlib.suppress(OSError):
        inside = os.stat(f"/proc/{pid}/root/.overlace/hold")
        return any(os.path.samestat(inside, os.stat(folder / "gate" / "hold")) for folder in gates)
    return False


def _check_program(argv: Sequence[str], found: Mapping[str, Any]) -> None:
    """The engine started the gate; whether the gate can become the program is ours to tell. Raises InvalidArgument
    in Docker's words."""
    root = Path(f"/proc/{found['State']['Pid']}/root")
    reason = why_not_run(root, argv[0], found["Config"]["Env"], found["Config"]["WorkingDir"] or "/")
    if reason:
        raise InvalidArgument(f'exec: "{argv[0]}": {reason}')
