"""`overlace vfp`: what is programmed on one host, in vfpctrl's words.

Owns how ports, layers, rules and counters look on a terminal. Must not know how they are made: it asks the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import click

from overlace.cli.asking import ask, host_option

BASE = "/overlace/v1/vfp"
_json = click.option("--json", "as_json", is_flag=True, help="Print the documents instead.")


@click.group()
def vfp() -> None:
    """What this host's switch does with packets: ports, layers, rules, counters.

    PORT is "host", an endpoint's GUID, a task's name (web.1), its address or a container's id.
    """


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as docker does."""
    lines = [list(head), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        click.echo("   ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


@vfp.command()
@host_option
@_json
def ports(host: str, as_json: bool) -> None:
    """The switch's ports: the host's own and one per container and network."""
    found = ask(host, f"{BASE}/ports")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table(
        ("PORT", "NAME", "NETWORK", "VNI", "ADDRESS", "MAC", "STATE"),
        (
            (
                p["Name"],
                p["FriendlyName"],
                p["Network"] or "-",
                str(p["Vni"] or "-"),
                p["Address"] or "-",
                p["Mac"] or "-",
                p["State"],
            )
            for p in found
        ),
    )


def _layers(host: str, port: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(host, f"{BASE}/layers?port={quote(port)}")
    return found


def _head(port: dict[str, Any]) -> None:
    click.echo(f"PORT : {port['Name']}")
    click.echo(f"    Friendly name : {port['FriendlyName']}")
    if port["Network"]:
        click.echo(f"    Network : {port['Network']} (VNI {port['Vni']})")
    click.echo(f"    Address : {port['Address']}")


@vfp.command()
@click.argument("port", default="")
@host_option
@_json
def layers(host: str, port: str, as_json: bool) -> None:
    """The layers of PORT (every port when not given) in the order a packet from the container meets them.

    A packet to the container meets the layers' IN groups in the opposite order.
    """
    found = _layers(host, port)
    if as_json:
        short = [
            {
                "Name": p["Name"],
                "Layers": [
                    {
                        "Name": layer["Name"],
                        "Groups": [{**g, "Rules": len(g["Rules"])} for g in layer["Groups"]],
                    }
                    for layer in p["Layers"]
                ],
            }
            for p in found
        ]
        click.echo(json.dumps(short, indent=2))
        return
    for p in found:
        _head(p)
        click.echo("")
        table(
            ("  LAYER", "GROUP", "DIRECTION", "PRIORITY", "RULES"),
            (
                (
                    f"  {layer['Name']}",
                    g["Name"],
                    g["Direction"],
                    str(g["Priority"]),
                    str(len(g["Rules"])),
                )
                for layer in p["Layers"]
                for g in layer["Groups"]
            ),
        )
        click.echo("")


@vfp.command()
@click.argument("port", default="")
@click.option("--layer", "only_layer", default="", metavar="NAME", help="Only this layer.")
@click.option("--group", "only_group", default="", metavar="NAME", help="Only this group.")
@host_option
@_json
def rules(host: str, port: str, only_layer: str, only_group: str, as_json: bool) -> None:
    """The rules of PORT (every port when not given), as `vfpctrl /list-rule` prints them.

    In each group the matching rule with the lowest priority counts.
    """
    found = _layers(host, port)
    for p in found:
        p["Layers"] = [
            {**layer, "Groups": [g for g in layer["Groups"] if only_group.lower() in ("", g["Name"].lower())]}
            for layer in p["Layers"]
            if only_layer.lower() in ("", layer["Name"].lower())
        ]
        p["Layers"] = [layer for layer in p["Layers"] if layer["Groups"]]
    if not any(p["Layers"] for p in found):
        asked = " ".join(x for x in (only_layer, only_group) if x)
        raise click.UsageError(f"no layer or group {asked}: `overlace vfp layers` lists them")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for p in found:
        if p["Layers"]:
            _head(p)
        for layer in p["Layers"]:
            click.echo(f"  LAYER : {layer['Name']}")
            for g in layer["Groups"]:
                _show_group(g)
        click.echo("")


def _show_group(g: dict[str, Any]) -> None:
    click.echo(f"    GROUP : {g['Name']}")
    click.echo(f"        Priority : {g['Priority']}")
    click.echo(f"        Direction : {g['Direction']}")
    for r in g["Rules"]:
        click.echo(f"      RULE : {r['Name']}")
        click.echo(f"          Priority : {r['Priority']}")
        click.echo(f"          Type : {r['Type']}")
        if not r["Conditions"]:
            click.echo("          Conditions : <none>")
        else:
            click.echo("          Conditions :")
            for word, value in r["Conditions"].items():
                click.echo(f"              {word} : {value}")
        click.echo(f"          Action : {r['Action']}")


@vfp.command()
@click.option("--all", "-a", "every", is_flag=True, help="Also what has not happened.")
@host_option
@_json
def counters(host: str, every: bool, as_json: bool) -> None:
    """Packets by what became of them, since this host's data path was made."""
    found = ask(host, f"{BASE}/counters")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table(
        ("PACKETS", "REASON", "MEANING"),
        ((str(c["Packets"]), c["Name"], c["Meaning"]) for c in found if every or c["Packets"]),
    )
