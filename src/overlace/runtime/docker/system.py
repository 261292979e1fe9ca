"""What runtime docker does differently on Linux and on Windows: the words between the runtime and the two.

Owns the Protocol; runtime.py chooses. On Linux a container is held at a gate until its network is attached and its files
lie on a tmpfs (on_linux.py). Windows has neither: the program runs as the container starts and the endpoint is attached
to it right then, by the engine's id (on_windows.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from overlace.runtime.base import ContainerConfig, Image, Interface
from overlace.runtime.oci.records import Places


class Made(msgspec.Struct, frozen=True):
    """A container to be: its whole command line, the body of POST /containers/create, and what is put into it then."""

    argv: tuple[str, ...]
    body: dict[str, Any]
    archive: bytes = b""  # tar, below the root of its file system; empty: nothing


class Asked(msgspec.Struct, frozen=True):
    """One container that the engine shall make: `owner` is our data root, `version` the API's spoken."""

    config: ContainerConfig
    image: Image
    places: Places
    owner: str
    version: tuple[int, int]


class System(Protocol):
    """Verbs that differ. Errors as in `Runtime`."""

    gated: bool  # see `Sandboxes.gated`

    def make(self, asked: Asked) -> Made:
        """Prepare its folders. Raises InvalidArgument for what this system cannot do."""

    def is_released(self, places: Places) -> bool: ...

    def before_start(self, places: Places) -> None:
        """What a run before the last reboot left."""

    def sandbox(self, docker_id: str, found: Mapping[str, Any], gates: Sequence[Path]) -> Path:
        """Where endpoints of the started container are attached. `gates`: the folders of all that wait.

        Raises FailedPrecondition when the engine runs on another machine."""

    def release(
        self,
        places: Places,
        argv: Sequence[str],
        found: Mapping[str, Any],
        resolv_conf: str,
        hosts: Sequence[tuple[str, str]],
    ) -> None:
        """Let it run, if it does not. Raises InvalidArgument when its program cannot be run."""

    def signal(self, name: str) -> str:
        """As the engine takes it. Raises InvalidArgument."""

    def interfaces(self, pid: int) -> tuple[Interface, ...] | None:
        """As its first process counts them; None: it has ended."""

    @property
    def erase_files(self) -> Callable[[Places], Awaitable[None]]: ...

    @property
    def remove_places(self) -> Callable[[Places], Awaitable[None]]: ...
