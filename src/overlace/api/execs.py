"""The exec instances of this host: asked for, running, ended.

Owns their ids and how long they are remembered (until their container goes). Must not know HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from overlace.model.errors import Conflict, NotFound
from overlace.runtime.base import Exec, ExecConfig


class Instance:
    """One `docker exec`: `exit_code` None until it has ended."""

    def __init__(self, container_id: str, config: ExecConfig, detach_keys: str, keys: bytes) -> None:
        self.id = secrets.token_hex(32)
        self.container_id = container_id
        self.config = config
        self.detach_keys, self.keys = detach_keys, keys
        self.started = False
        self.exit_code: int | None = None
        self.running: Exec | None = None

    def claim(self) -> None:
        """An instance runs once. Raises Conflict."""
        if self.started:
            raise Conflict(f"Error: Exec command {self.id} has already run")
        self.started = True

    def ended(self, code: int) -> None:
        self.exit_code, self.running = code, None


class Instances:
    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}

    def add(self, instance: Instance, containers: Iterable[str]) -> None:
        """Remember it; those of containers that are no more are forgotten."""
        there = set(containers)
        self._by_id = {i: one for i, one in self._by_id.items() if one.container_id in there or one.running}
        self._by_id[instance.id] = instance

    def find(self, id: str) -> Instance:
        try:
            return self._by_id[id]
        except KeyError:
            raise NotFound(f"No such exec instance: {id}") from None

    def of(self, container_id: str) -> list[str]:
        """Ids of those that run in a container."""
        return [i for i, one in self._by_id.items() if one.container_id == container_id and one.running]
