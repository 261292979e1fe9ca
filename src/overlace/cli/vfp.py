"""`overlace vfp`: what is programmed on one host, in vfpctrl's words.

Owns how ports, layers, rules, flows and counters look on a terminal. Must not know how they are made: it asks the daemon.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote

import click

from overlace.cli.asking import ask, host_option, json_option
from overlace.network.vfp.flow_log import FlowLog, Happened, Seen
from overlace.network.vfp.reasons import MEANINGS

BASE = "/overlace/v1/vfp"
NOT_WATCHED = (
    "note: nobody looked at flows until now, so TCP connections between two containers of less than eight packets one "
    "way are not among them; from now on, and for two minutes after each look, every connection is"
)


@click.group()
def vfp() -> None:
    """What this host's switch does with packets: ports, layers, rules, flows, drops, counters.

    PORT is "host", an endpoint's GUID, a task's name (web.1), its address or a container's id.
    """


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as docker does."""
    lines = [list(head), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        click.echo("   ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def _tell(found: Any, as_json: bool, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """What the daemon said, or the table made of it."""
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        table(head, rows)


@vfp.command()
@host_option
@json_option
def ports(host: str, as_json: bool) -> None:
    """The switch's ports: the host's own and one per container and network."""
    found = ask(host, f"{BASE}/ports")
    _tell(
        found,
        as_json,
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
    said = next((p["Balancing"] for p in found if p["Balancing"]), "")
    if said and not as_json:
        click.echo(f"\nServices are balanced {said}.")


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
@json_option
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
@json_option
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
    for word, value in g.get("Conditions", {}).items():
        click.echo(f"        {word} : {value}")
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
        if r.get("Hits"):
            hits = r["Hits"]
            counted = (_count(hits[word], word.lower()) for word in ("Connections", "Packets", "Bytes"))
            click.echo(f"          Hits : {', '.join(counted)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word.removesuffix('s') if number == 1 else word}"


def _rule_counters(host: str, port: str, every: bool, as_json: bool) -> None:
    ports = _layers(host, port)
    found = [
        {"Port": p["FriendlyName"], "Group": g["Name"], "Direction": g["Direction"], **r}
        for p in ports
        for layer in p["Layers"]
        for g in layer["Groups"]
        for r in g["Rules"]
        if r.get("Hits") and (every or r["Hits"]["Packets"])
    ]
    _tell(
        found,
        as_json,
        ("CONNECTIONS", "PACKETS", "BYTES", "PORT", "DIRECTION", "RULE", "ACTION"),
        (
            (
                *(str(r["Hits"][word]) for word in ("Connections", "Packets", "Bytes")),
                r["Port"],
                r["Direction"],
                r["Name"],
                r["Action"],
            )
            for r in found
        ),
    )
    if not found and not as_json:
        judged = any(
            r.get("Hits") for p in ports for layer in p["Layers"] for g in layer["Groups"] for r in g["Rules"]
        )
        nothing = (
            "no rule has counted anything yet; --all shows them"
            if judged
            else "no access rules judge it, so none count"
        )
        click.echo(f"\n{port}: {nothing}.")


@vfp.command()
@click.argument("port", default="")
@click.option("--all", "-a", "every", is_flag=True, help="Also what has not happened.")
@host_option
@json_option
def counters(host: str, port: str, every: bool, as_json: bool) -> None:
    """Packets by what became of them, since this host's data path was made; those of PORT by the access rules that had
    a say about them.
    """
    if port:
        _rule_counters(host, port, every, as_json)
        return
    found = ask(host, f"{BASE}/counters")
    _tell(
        found,
        as_json,
        ("PACKETS", "REASON", "MEANING"),
        ((str(c["Packets"]), c["Name"], c["Meaning"]) for c in found if every or c["Packets"]),
    )


@vfp.command()
@click.argument("port", default="")
@click.option("--rate", is_flag=True, help="Packets and bytes a second, over one second, instead of totals.")
@click.option(
    "--all", "-a", "every", is_flag=True, help="Also flows that are idle or decided by older tables."
)
@click.option(
    "--follow", "-f", is_flag=True, help="Print connections as they are opened and end, until Ctrl-C."
)
@host_option
@json_option
def flows(host: str, port: str, rate: bool, every: bool, follow: bool, as_json: bool) -> None:
    """Connections the switch remembers, busiest first: what came, what it went on as and where.

    Each direction is a flow of its own, at the port where it enters this host's switch. --follow also shows what is
    dropped; of PORT: on its networks.
    """
    url = f"{BASE}/flows?port={quote(port)}"
    if follow and (rate or every):
        raise click.UsageError("--follow goes with neither --rate nor --all")
    if not ask(host, f"{BASE}/watched")["Seconds"]:
        click.echo(NOT_WATCHED, err=True)
    if follow:
        follow_flows(lambda: ask(host, url), _drops(host, port), as_json)
    found = ask(host, url)
    if rate:
        found = rates(found, lambda: ask(host, url))
    if not every:
        found = [f for f in found if f["Current"]]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    head = (
        "CAME",
        "VERDICT",
        "WENT",
        "TO",
        "SERVICE",
        "PACKETS/S" if rate else "PACKETS",
        "BYTES/S" if rate else "BYTES",
        "IDLE",
    )
    table(
        head,
        (
            (
                f["Came"],
                f["Verdict"] + (f" vni {f['Vni']}" if f["Vni"] else ""),
                f["Went"] or "-",
                _to(f) or "-",
                f["Service"] or "-",
                str(f["Packets"]),
                str(f["Bytes"]),
                f"{f['IdleSeconds']}s",
            )
            for f in found
        ),
    )


def _to(f: Mapping[str, Any]) -> str:
    """Where it goes: a host's address, or a port by its name."""
    return str(f.get("ToName") or f["To"])


def _drops(host: str, port: str) -> Callable[[], list[dict[str, Any]]]:
    """Asks what was dropped; with a port, on its networks."""
    if not port:
        return lambda: list(ask(host, f"{BASE}/drops"))
    networks = {p["Network"] for p in _layers(host, port)}
    return lambda: [d for d in ask(host, f"{BASE}/drops") if d["Network"] in networks]


def follow_flows(
    look: Callable[[], list[dict[str, Any]]], drops: Callable[[], list[dict[str, Any]]], as_json: bool
) -> NoReturn:
    """What happens to flows, and what is dropped, a line each, seen every second."""
    log = FlowLog()
    while True:
        dropped = {(d["Network"], d["Reason"]): d["Packets"] for d in drops()}
        for line in follow_lines([*log.look(map(_seen, look())), *log.drops(dropped)], as_json):
            click.echo(line)
        time.sleep(1.0)


def _key(f: dict[str, Any]) -> str:
    """Names a flow from one look to the next."""
    return f"{f['Port']} {f['Vni']} {f['Came']}"


def _seen(f: dict[str, Any]) -> Seen:
    return Seen(_key(f), f["Packets"], f["Bytes"], f["IdleSeconds"], f, f["Seconds"], f["Closed"])


def follow_lines(happened: Iterable[Happened], as_json: bool) -> Iterator[str]:
    """`as_json`: one document a line, as `flows --json` has them, with the event."""
    for h in happened:
        if h.event in ("dropped", "limited"):
            yield _drop_line(h, as_json)
            continue
        if as_json:
            more = {"Seconds": h.seconds, "Why": h.why} if h.event == "ended" else {}
            yield json.dumps({"Event": h.event, **h.facts, "Packets": h.packets, "Bytes": h.bytes, **more})
            continue
        f = h.facts
        verdict = f"{f['Verdict']}" + (f" vni {f['Vni']}" if f["Vni"] else "")
        where = " ".join(
            str(word)
            for word in (
                f["Went"] and f"as {f['Went']}",
                _to(f) and f"to {_to(f)}",
                f["Service"] and f"of {f['Service']}",
            )
            if word
        )
        end = f"  {h.seconds} s, {h.why}" if h.event == "ended" else ""
        yield f"{h.event:<7} {f['Came']}  {verdict}  {where}  packets {h.packets}  bytes {h.bytes}{end}"


def _drop_line(h: Happened, as_json: bool) -> str:
    network, reason = str(h.facts["network"]), str(h.facts["reason"])
    if as_json:
        return json.dumps({"Event": h.event, "Network": network, "Reason": reason, "Packets": h.packets})
    return (
        f"{h.event:<7} {reason}  network {network or '-'}  packets {h.packets}  ({MEANINGS.get(reason, '')})"
    )


def rates(before: list[dict[str, Any]], again: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The flows of a second look, a second later, with what was added in between."""
    known = {_key(f): f for f in before}
    start = time.monotonic()
    time.sleep(1.0)
    after = again()
    seconds = time.monotonic() - start
    found = []
    for f in after:
        old = known.get(_key(f), {"Packets": 0, "Bytes": 0})
        gained = {key: max(0, round((f[key] - old[key]) / seconds)) for key in ("Packets", "Bytes")}
        found.append({**f, **gained})
    return sorted(found, key=lambda f: -int(f["Bytes"]))


@vfp.command()
@host_option
@json_option
def drops(host: str, as_json: bool) -> None:
    """Packets the switch dropped, by network and reason."""
    found = ask(host, f"{BASE}/drops")
    _tell(
        found,
        as_json,
        ("PACKETS", "NETWORK", "REASON", "MEANING"),
        ((str(d["Packets"]), d["Network"] or "-", d["Reason"], d["Meaning"]) for d in found),
    )
