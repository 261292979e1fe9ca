"""What commands that ask a daemon share: `-H`, and a refusal in the daemon's own words.

Owns just that; the client is engine.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from overlace.cli.engine import Engine, EngineError
from overlace.model.errors import OverlaceError

F = TypeVar("F", bound=Callable[..., Any])


def ask(host: str, url: str) -> Any:
    """GET; a refusal is raised as the daemon's own sentence."""
    try:
        return Engine.of_user(host).call("GET", url)
    except EngineError as error:
        raise OverlaceError(error.text or error.message) from None


def host_option(command: F) -> F:
    """`-H`, as docker has it."""
    words = "Daemon to ask; else DOCKER_HOST, else docker's context, else this host's own."
    return click.option("-H", "--host", default="", metavar="HOST", help=words)(command)
