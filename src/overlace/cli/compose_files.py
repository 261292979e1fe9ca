"""Compose files from the disk: the options `plan` and `stack deploy` share, and a project read with them.

Owns what is read from where: `-c`, stdin, `.env`, the environment, the data of secrets and configs. Must not know the
swarm.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from overlace.compose.desired import MAX_DATA, file_wishes
from overlace.compose.interpolate import Lookup
from overlace.compose.load import Loader, Source
from overlace.compose.problems import Problem, Problems
from overlace.compose.project import FileDef, Project
from overlace.compose.read import Reading, read_project
from overlace.compose.versions import Wish
from overlace.model.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])
_STACK = re.compile(r"[a-zA-Z0-9]+(?:[-_]+[a-zA-Z0-9]+)*")
MAX_FILE = 32 << 20  # bytes of a compose file or a file of variables
_DEFAULTS = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")


def _read(path: str, most: int) -> bytes:
    """A file of up to `most` bytes; some, such as devices, have no end. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        return _bounded(file, most)


def _bounded(file: BinaryIO, most: int) -> bytes:
    found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return found


class Disk:
    """`overlace.compose.load.Files` of this machine."""

    def text(self, path: str) -> str:
        return _read(path, MAX_FILE).decode()

    def exists(self, path: str) -> bool:
        return os.path.exists(path)


class Stack(msgspec.Struct, frozen=True):
    """A stack as its files describe it."""

    name: str
    project: Project
    wishes: list[Wish]
    warnings: list[Problem]


def compose_options(command: F) -> F:
    """`-c`, `--env-file`, `--profile`, `--leave-out-unsupported`."""
    for option in (
        click.option(
            "--leave-out-unsupported", is_flag=True,
            help="Only warn of keys a swarm cannot honour, and deploy without them, as docker stack deploy does.",
        ),
        click.option(
            "--profile", "profiles", multiple=True, metavar="NAME",
            help="Deploy the services of a profile too ('*' for all); else COMPOSE_PROFILES.",
        ),
        click.option(
            "--env-file", "env_files", multiple=True, metavar="FILE",
            help="Variables for the compose file, instead of the .env beside it.",
        ),
        click.option(
            "-c", "--compose-file", "files", multiple=True, metavar="FILE",
            help="A compose file, or - for stdin; several are merged. Else compose.yaml here.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def read_stack(
    name: str, files: Sequence[str], env_files: Sequence[str], profiles: Sequence[str], leave_out: bool
) -> Stack:
    """Raises InvalidArgument; a ComposeError names every mistake with its place."""
    if not _STACK.fullmatch(name):
        raise InvalidArgument(f'invalid stack name "{name}": letters and digits, with - or _ between them')
    problems = Problems()
    environment = dict(os.environ)
    active = profiles or [p.strip() for p in environment.get("COMPOSE_PROFILES", "").split(",") if p.strip()]
    loader = Loader(Disk(), environment, problems, active)
    root = loader.load(_sources(files or _default()), [os.path.abspath(path) for path in env_files])
    project = read_project(root, Reading(problems, Disk(), loader.lookup, leave_out))
    wishes = file_wishes(name, project, _data_of(loader.lookup), problems)
    problems.check()
    return Stack(name, project, wishes, problems.warnings)


def _default() -> list[str]:
    for name in _DEFAULTS:
        if os.path.exists(name):
            return [name]
    raise InvalidArgument("no compose file: name one with -c FILE")


def _sources(files: Sequence[str]) -> list[Source]:
    directory = os.getcwd() if files[0] == "-" else os.path.dirname(os.path.abspath(files[0]))
    found = []
    for name in files:
        try:
            raw = _bounded(sys.stdin.buffer, MAX_FILE) if name == "-" else _read(name, MAX_FILE)
            found.append(Source("stdin" if name == "-" else name, raw.decode(), directory))
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    return found


def _data_of(lookup: Lookup) -> Callable[[str, str, FileDef], bytes]:
    def read(kind: str, key: str, definition: FileDef) -> bytes:
        if definition.content is not None:
            return definition.content.encode()
        if definition.environment:
            value = lookup(definition.environment)
            if value is None:
                raise ValueError(f"the variable {definition.environment} is not set")
            return value.encode()
        try:
            return _read(definition.file, MAX_DATA[kind])
        except OSError as error:
            raise ValueError(f"{definition.file} cannot be read: {error.strerror}") from None

    return read
