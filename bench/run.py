"""`make bench`: figures of overlace beside its peers, as ratios in one run.

Prints a table and writes everything that was measured to bench/results/ as JSON. Figures are never asserted: it
exits non-zero only when something could not be measured. All load stays on this machine, in namespaces of its own,
which are gone at the end, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import control, deploy, machine, network, overlay, peer, places, scale, swarms
from measure.figures import Figure, as_document, is_measured, render

from overlace.model.errors import OverlaceError, Unavailable

RESULTS = Path(__file__).parent / "results"
PARTS = ("network", "scale", "overlay", "deploy", "control")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: to see that it works, not to compare"
    )
    parser.add_argument(
        "--fetch-docker",
        action="store_true",
        help="take dockerd out of Debian's packages even if it is installed",
    )
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    chosen.parts = chosen.parts or list(PARTS)
    return chosen


def figures(chosen: argparse.Namespace, docker: peer.Docker | None) -> Iterator[Figure]:
    """Measure the chosen parts, one figure after the other."""
    quick, parts = chosen.quick, set(chosen.parts)
    programs = network.programs_folder()
    if parts & {"network", "scale", "control"}:
        with network.serving(programs, say) as ways:
            if "network" in parts:
                yield from network.measure(programs, ways, rounds=2 if quick else 6, seconds=1, say=say)
            if "scale" in parts:
                yield from scale.measure(programs, ways, rounds=2 if quick else 6, seconds=0.5, say=say)
            if parts & {"scale", "control"}:
                for endpoints in (10_000, 100_000):
                    yield from control.measure_programming(ways.hosts[0], endpoints, rounds=3, say=say)
                yield control.measure_update(ways.hosts[0], rounds=3 if quick else 20, say=say)
    if docker is not None:
        with swarms.both(programs, docker, say) as pair:
            if "overlay" in parts:
                yield from overlay.measure(
                    programs, pair, rounds=2 if quick else 6, seconds=1, updates=2 if quick else 6, say=say
                )
            if "deploy" in parts:
                counts, rounds = ((1, 10), 1) if quick else ((1, 10, 25, 50), 3)
                yield from deploy.measure(programs, pair, counts, rounds, budget=330, say=say)
            if "control" in parts:
                yield from control.measure(programs, pair, rounds=2 if quick else 8, seconds=0.5, say=say)


def main() -> int:
    chosen = options()
    if os.geteuid() != 0:
        say("bench: it makes network namespaces and starts daemons: run it as root")
        return 2
    # However it is told to stop, it takes its things away. A shell's background jobs start with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    done: list[Figure] = []
    failure: str | None = None
    docker = None
    try:
        if {"overlay", "deploy", "control"} & set(chosen.parts):
            try:
                docker = peer.ensure_docker(say, fetch=chosen.fetch_docker)
            except Unavailable as error:  # the network figures need none
                failure = error.message
        facts = machine.facts(docker)
        with places.alone():
            for figure in figures(chosen, docker):
                done.append(figure)
    except OverlaceError as error:
        failure = error.message
    except KeyboardInterrupt:
        failure = "interrupted"
    missing = [f"{figure.group}: {figure.name}" for figure in done if not is_measured(figure)]
    done.sort(key=lambda figure: figure.group == control.GROUP)  # small things last
    if done:
        print(render(done))
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
        document = {
            "machine": facts,
            "quick": chosen.quick,
            "seconds": round(time.monotonic() - began, 1),
            "figures": [as_document(figure) for figure in done],
            "not_measured": missing,
            "failure": failure,
        }
        file.write_text(json.dumps(document, indent=1) + "\n")
        print(f"\nratio: overlace / peer, median of paired rounds. {time.monotonic() - began:.0f} s; {file}")
    for line in missing:
        say(f"bench: could not measure {line}")
    if failure:
        say(f"bench: {failure}")
    return 1 if failure or missing else 0


if __name__ == "__main__":
    sys.exit(main())
