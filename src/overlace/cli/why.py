"""`overlace why`: why a task or service is where it is, or is not.

Owns the text; what it says comes from the manager (GET /overlace/v1/why).
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from overlace.cli.asking import host_option, json_option
from overlace.cli.engine import Engine, EngineError
from overlace.model.errors import OverlaceError

_FEW = 8


@click.command()
@click.argument("what", metavar="TASK|SERVICE")
@host_option
@json_option
def why(what: str, host: str, as_json: bool) -> None:
    """Say why a task or service is where it is, or waits, and what would help.

    A task is named by its id or as SERVICE.SLOT. Ask a manager. Times in JSON are ns since the epoch.
    """
    try:
        found = Engine.of_user(host).call("GET", f"/overlace/v1/why?of={urllib.parse.quote(what)}")
    except EngineError as error:
        if error.status == 404 and error.text == "page not found":
            raise OverlaceError(
                "the daemon is no Overlace daemon, or an older one: it cannot say why"
            ) from None
        raise OverlaceError(error.text) from None
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(lines(found, time.time_ns())))


def lines(why: dict[str, Any], now: int) -> Iterator[str]:
    """The answer as text."""
    if why["kind"] == "service":
        yield f"{why['name']} ({why['mode']}): {why['says']}"
        yield from _tasks(why["tasks"], now)
    else:
        (task,) = why["tasks"]
        yield f"{why['name']} ({task['id']}) {task['says']}"
        yield f"  {task['state']}, wanted {task['desired_state']}; since {_when(task['since'], now)}"
    *away, fits = why["filters"] or [None]
    if away:
        yield ""
        yield "Nodes turned away:"
        for verdict in away:
            yield f"  {verdict['sentence']}"
            yield from _nodes(verdict["nodes"])
    if fits is not None:
        yield ""
        if fits["nodes"]:
            yield f"Nodes that fit ({why['ranking']}):"
            yield from _nodes(fits["nodes"])
        else:
            yield "No node fits."
    if why["remedies"]:
        yield ""
        yield "What would help, any one of:"
        for remedy in why["remedies"][:_FEW]:
            yield from _remedy(remedy)
        if len(why["remedies"]) > _FEW:
            yield f"  … and {len(why['remedies']) - _FEW} more (--json has all)"
    if why["note"]:
        yield ""
        yield why["note"]


def _tasks(tasks: list[dict[str, Any]], now: int) -> Iterator[str]:
    rows = [(task["name"], task["state"], task["says"], _when(task["since"], now)) for task in tasks]
    for row, width in _columns(rows):
        yield "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()


def _nodes(nodes: list[dict[str, Any]]) -> Iterator[str]:
    for row, width in _columns([(node["hostname"], node["detail"]) for node in nodes]):
        yield f"    {row[0].ljust(width[0])}  {row[1]}"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ((row, widths) for row in rows)


def _remedy(remedy: dict[str, Any]) -> Iterator[str]:
    steps, nodes = remedy["steps"], remedy["nodes"]
    if len(nodes) == 1:
        steps = [re.sub(r"\bNODE\b", nodes[0], step) for step in steps]
    where = f"   (NODE: {_some(nodes)})" if len(nodes) > 1 else ""
    yield f"  - {'; and '.join(steps)}{where}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    if len(names) <= _FEW:
        return ", ".join(names)
    return f"{', '.join(names[:_FEW])} and {len(names) - _FEW} more"


def _when(ns: int, now: int) -> str:
    at = datetime.fromtimestamp(ns / 1e9).astimezone()
    seconds = max(now - ns, 0) // 1_000_000_000
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{at:%Y-%m-%d %H:%M:%S} ({seconds // size} {unit} ago)"
    return f"{at:%Y-%m-%d %H:%M:%S} ({seconds} s ago)"
