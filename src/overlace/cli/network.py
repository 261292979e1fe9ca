"""`overlace network health NAME`: how the hosts of a network reach each other.

Owns how the matrix looks on a terminal. Must not know how it is measured: it asks a manager.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from overlace.cli.asking import ask, host_option, json_option
from overlace.cli.vfp import table

WORDS = {"new": "measuring", "unknown": "?", "down": "DOWN", "unmeasured": "not measured"}


@click.group()
def network() -> None:
    """What docker network has no word for."""


@network.command()
@click.argument("name")
@host_option
@json_option
def health(name: str, host: str, as_json: bool) -> None:
    """How the hosts of network NAME reach each other through the overlay's own UDP port.

    Every host sends small probes to every host it shares a network with: FROM stands at the left, TO above. A cell says
    ok (or what is wrong), packets lost, round-trip time and the largest IP packet the underlay takes. Exits 1 when a
    pair is broken, and says what to do. Ask a manager.
    """
    found = ask(host, f"/overlace/v1/networks/{quote(name, safe='')}/health")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)
    if any(path["State"] == "down" for path in found["Paths"]):
        raise SystemExit(1)


def show(found: dict[str, Any]) -> None:
    names = [h["Name"] for h in found["Hosts"]]
    cells = {(p["From"], p["To"]): cell(p) for p in found["Paths"]}
    if len(names) < 2:
        click.echo(
            f"network {found['Name']}: {names[0] if names else 'no host'} takes part, so there is no path"
        )
        return
    table(("FROM \\ TO", *names), ([a, *(cells.get((a, b), "-") for b in names)] for a in names))
    if found["ContainerMtu"]:
        click.echo(f"\ncontainers: IP packets of up to {found['ContainerMtu']} bytes")
    for to, why in sorted({(p["To"], p["Why"]) for p in found["Paths"] if p.get("Why")}):
        click.echo(f"\nto {to}: not measured: {why}")
    for line in problems(found["Problems"]):
        click.echo(line)


def cell(path: dict[str, Any]) -> str:
    """ok 0% 0.21ms 1500"""
    if path["State"] in WORDS:
        return WORDS[path["State"]]
    word = "CSUM" if path["Checksum"] == "bad" else "FRAG" if path["Fragments"] == "lost" else path["State"]
    rtt = f"{path['RttUs'] / 1000:.2f}ms" if path["RttUs"] else "-"
    return f"{word} {path['Loss']}% {rtt} {path['Mtu'] or '-'}"


def problems(found: list[dict[str, Any]]) -> Iterator[str]:
    for p in found:
        yield f"\n{p['From']} > {p['To']}: {p['Reason']}"
        yield f"  what to do: {p['Remedy']}"
