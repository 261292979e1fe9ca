"""`overlace trace FROM TO`: where a packet goes, and where it stops.

Owns how a trace looks on a terminal. Must not know how it is made: it asks a manager.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import click

from overlace.cli.asking import ask, host_option, json_option

BASE = "/overlace/v1/trace"


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--proto", default="tcp", show_default=True, help="tcp, udp, sctp or icmp.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Destination port. Default: the target's own, else 80.",
)
@click.option("--via", default="", metavar="NODE", help="The node a client outside talks to.")
@click.option("-6", "--ipv6", is_flag=True, help="Over IPv6, where FROM and TO do not say.")
@click.option(
    "--size",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="BYTES",
    help="Size of the IP packet in question.",
)
@click.option("--live", is_flag=True, help="Also send a marked packet and show where it was seen.")
@host_option
@json_option
def trace(
    source: str,
    target: str,
    proto: str,
    port: int,
    via: str,
    ipv6: bool,
    size: int,
    live: bool,
    host: str,
    as_json: bool,
) -> None:
    """What a packet FROM one place TO another experiences, hop by hop.

    FROM and TO are a task (web.1; of a global service agent.HOSTNAME), a service, a container's id, a node, an address,
    `client` (outside) or `internet`. The manager computes the answer from what each host was told, and asks the hosts on
    the way what they measured and whether their kernels hold what they should. With --live one marked packet is sent by
    the sender's host, from inside the sender's container. Exits 1 when the way is broken, and says where and what to do.
    """
    asked = {
        "from": source,
        "to": target,
        "proto": proto,
        "port": port,
        "via": via,
        "ipv6": int(ipv6),
        "size": size,
        "live": int(live),
    }
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
    if found.get("Live") is not None:
        show_live(found["Live"])
    click.echo(f"\n{found['Outcome']}")
    if found["Broken"] is not None:
        click.echo(f"what to do: {found['Broken']['Remedy']}")
    for note in dict.fromkeys(found["Notes"]):
        click.echo(f"note: {note}")


def show_live(live: dict[str, Any]) -> None:
    click.echo(f"\nlive: a packet marked {live['Mark']} was sent")
    where, start = "", 0
    for seen in live["Sightings"]:
        if seen["Where"] != where:
            where, start = seen["Where"], seen["At"]
        after = f"+{(seen['At'] - start) / 1000:.0f}us"
        text = f"{seen['Verdict']}: {seen['Meaning']}" if seen["Verdict"] else f"seen {seen['Packet']}"
        click.echo(f"    {where}  {seen['Interface']:<16} {after:>8}  {text}")
    if not live["Sightings"]:
        click.echo("    seen nowhere")
    if live["Error"]:
        click.echo(f"    not sent: {live['Error']}")
    else:
        click.echo(f"    answer: {live['Answer'] or 'none'}")
    if live.get("Members"):
        click.echo("\nlive: and one to each backend")
    for m in live.get("Members", ()):
        mark = " " if m["Ok"] else "X"
        click.echo(
            f"    {mark} {m['Address']}  {m['Task']} on {m['Node']}: {m['Answer'] or 'no answer'}  ({m['LastSeen']})"
        )
