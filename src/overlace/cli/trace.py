"""`overlace trace FROM TO`: where a packet goes, and where it stops.

Owns how a trace looks on a terminal. Must not know how it is made: it asks a manager.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import click

from overlace.cli.asking import ask, host_option

BASE = "/overlace/v1/trace"


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--proto", default="tcp", show_default=True, help="tcp, udp, sctp or icmp.")
@click.option("--port", default=0, help="Destination port. Default: the target's own, else 80.")
@click.option("--via", default="", metavar="NODE", help="The node a client outside talks to.")
@host_option
@click.option("--json", "as_json", is_flag=True, help="Print the document instead.")
def trace(source: str, target: str, proto: str, port: int, via: str, host: str, as_json: bool) -> None:
    """What a packet FROM one place TO another experiences, hop by hop.

    FROM and TO are a task (web.1), a service, a container's id, a node, an address, `client` (outside) or
    `internet`. The manager computes the answer from what each host was told; nothing is sent. Exits 1 when
    the way is broken, and says where and what to do.
    """
    asked = {"from": source, "to": target, "proto": proto, "port": port, "via": via}
    found = ask(host, f"{BASE}?{urlencode(asked)}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)
    if found["Broken"] is not None:
        raise SystemExit(1)


def show(found: dict[str, Any]) -> None:
    click.echo(f"{found['Source']}  ->  {found['Target']}")
    if found["Question"]:
        click.echo(f"first packet: {found['Question']}\n")
    packet, where = found["Question"], ""
    width = max((len(h["Where"]) for h in found["Hops"]), default=0)
    for i, hop in enumerate(found["Hops"], 1):
        mark = " " if hop["Ok"] else "X"
        name = hop["Where"] if hop["Where"] != where else ""
        where = hop["Where"]
        click.echo(f"{i:>3} {mark} {name:<{width}}  {hop['What']}: {hop['Effect']}")
        if hop["Packet"] != packet:
            packet = hop["Packet"]
            click.echo(f"      {'':<{width}}  now {packet}")
    if found["Members"]:
        click.echo("\nbackends")
        for m in found["Members"]:
            mark = " " if m["Ok"] else "X"
            said = f": {m['Reason']}" if m["Reason"] else ""
            click.echo(f"    {mark} {m['Address']}  {m['Task'] or '?'} on {m['Node']}{said}")
    click.echo(f"\n{found['Outcome']}")
    if found["Broken"] is not None:
        click.echo(f"what to do: {found['Broken']['Remedy']}")
    for note in dict.fromkeys(found["Notes"]):
        click.echo(f"note: {note}")
