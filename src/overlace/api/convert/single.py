"""What `docker ps` and `docker inspect` show of a standalone container besides what every container shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from overlace.agent.standalone.records import Record
from overlace.api.convert.common import Json
from overlace.api.convert.container import human_duration
from overlace.runtime.base import Container


def summary(record: Record, found: Container, now: int, *, restarting: bool) -> Json:
    """Members of one line of `docker ps` that differ."""
    shown: Json = {"HostConfig": {"NetworkMode": record.wish.shown["HostConfig"]["NetworkMode"]}}
    if restarting:
        ago = human_duration(now - found.finished_at)
        shown |= {"State": "restarting", "Status": f"Restarting ({found.exit_code}) {ago} ago"}
    return shown


def _with_modes(binds: Iterable[str]) -> list[tuple[str, str, str]]:
    """(source, target, mode) of those `-v` that have a third part: Docker shows it as it was written."""
    parts = (tuple(bind.split(":")) for bind in binds)
    return [(p[0], p[1], p[2]) for p in parts if len(p) == 3]


def inspect(shown: Json, record: Record, *, restarting: bool) -> Json:
    """The whole document, with what its creator asked for."""
    wish = record.wish
    config, host = wish.shown.get("Config", {}), wish.shown.get("HostConfig", {})
    ports = shown["Config"].get("ExposedPorts", {}) | config.get("ExposedPorts", {})
    merged = {**shown["Config"], **config}
    if ports:
        merged["ExposedPorts"] = ports
    else:
        merged.pop("ExposedPorts", None)
    policy = {"Name": wish.restart.name, "MaximumRetryCount": wish.restart.most}
    state = shown["State"]
    if restarting:
        state = state | {"Status": "restarting", "Restarting": True, "Running": True}
    modes = {target: mode for _, target, mode in _with_modes(host.get("Binds") or ())}
    return {
        **shown,
        "Mounts": [{**m, "Mode": modes.get(m["Destination"], m["Mode"])} for m in shown["Mounts"]],
        "Config": merged,
        "HostConfig": {**shown["HostConfig"], **host, "RestartPolicy": policy},
        "RestartCount": record.restarts,
        "State": state,
    }
