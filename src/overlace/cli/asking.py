"""What commands that ask a daemon share: `-H`, and a refusal in the daemon's own words.

Owns just that; the client is engine.py's.
"""

from __future__ import annotations

import functools
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


def json_option(command: F) -> F:
    """`--format json`, as docker has it, or `--json`: the command gets `as_json`."""

    @functools.wraps(command)
    def run(*args: Any, form: str, as_json: bool, **kwargs: Any) -> Any:
        return command(*args, as_json=as_json or form == "json", **kwargs)

    words = "How it is printed."
    kinds = click.Choice(("table", "json"))
    run = click.option("--json", "as_json", is_flag=True, help="The same as --format json.")(run)
    made: Any = click.option("--format", "form", type=kinds, default="table", show_default=True, help=words)(
        run
    )
    return made  # type: ignore[no-any-return]


def host_option(command: F) -> F:
    """`-H`, as docker has it."""
    words = "Daemon to ask; else DOCKER_HOST, else docker's context, else this host's own."
    return click.option("-H", "--host", default="", metavar="HOST", help=words)(command)
