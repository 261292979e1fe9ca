"""The deploy figures: from `service create` to all tasks answering, on two swarms side by side.

Owns what "answering" means, the same for both: a client inside the overlay asks the resolver for tasks.NAME every
20 ms and each address it gets for an HTTP answer; the clock stops when as many different addresses have answered as
replicas were asked for. Image and network are on both hosts before. Time runs from before the API call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure.figures import Figure, Peer, Target
from measure.programs import enter
from measure.swarms import Swarm
from overlace.lab import engine
from overlace.lab.shell import run
from overlace.model.errors import OverlaceError

Say = Callable[[str], None]
DOCKER = "docker swarm"
LIMIT = 120.0  # seconds one deploy may take


def measure(
    programs: Path,
    swarms: tuple[Swarm, Swarm],
    replicas: tuple[int, ...],
    rounds: int,
    budget: float,
    say: Say,
) -> Iterator[Figure]:
    """Deploy on both in turn. Rounds beyond the first are left out, and said so, once `budget` seconds are over."""
    figures = {
        count: Figure(
            f"{count} replica{'s' if count > 1 else ''}", "s", [Peer(DOCKER, Target(at_most=1))],
            group="deploy: from service create to all tasks answering", less_is_better=True,
        )
        for count in replicas
    }  # fmt: skip
    began = time.monotonic()
    for swarm in swarms:
        say(f"deploy: warming up {swarm.name}")
        _deploy(programs, swarm, "warm", 4, say)
    for index in range(rounds):
        if index and time.monotonic() - began > budget:
            say(f"deploy: {index} of {rounds} rounds; {budget:g} s are over")
            break
        for count in replicas:
            # Neither is always first.
            for swarm in swarms if index % 2 == 0 else swarms[::-1]:
                took = _deploy(programs, swarm, f"deploy{index}-{count}", count, say)
                said = "could not be measured" if took is None else f"{took:.2f} s"
                say(f"deploy: round {index + 1}, {count} on {swarm.name}: {said}")
                figure = figures[count]
                (figure.samples if swarm.name == "overlace" else figure.peer(DOCKER).samples).append(took)
    yield from figures.values()


def _deploy(programs: Path, swarm: Swarm, name: str, count: int, say: Say) -> float | None:
    """Seconds until all of a new service's tasks answer; the service is gone again afterwards."""
    took = None
    try:
        began = time.monotonic()
        swarm.create(name, count)
        took = answered(programs, swarm, name, count) - began
    except OverlaceError as error:
        say(f"  {swarm.name}: {error}")
    with contextlib.suppress(engine.EngineError):  # one that was refused is not there
        swarm.remove(name)
    return took


def answered(programs: Path, swarm: Swarm, name: str, count: int) -> float:
    """The moment (CLOCK_MONOTONIC, seconds) the last of `count` tasks first answered. Raises Internal when not all
    do."""
    argv = [*enter(swarm.prober), str(programs / "tasks"), "probe", f"tasks.{name}", str(count), str(LIMIT)]
    return float(run(argv, timeout=LIMIT + 10).split()[1])
