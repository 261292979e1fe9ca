"""What becomes of a standalone container when a run of it ends, and when the daemon finds it again. Pure.

Owns the restart policies' rules (moby daemon/internal/restartmanager, daemon/daemon.go `restore`). Must not act.
"""

from __future__ import annotations

import enum

import msgspec

from overlace.agent.standalone.records import Record
from overlace.runtime.base import Container

SECOND = 1_000_000_000
FIRST_PAUSE = SECOND // 10
LONGEST_PAUSE = 60 * SECOND
LONG_ENOUGH = 10 * SECOND  # a run of this length ends the series of ever longer pauses


class Next(enum.Enum):
    """What is done about a container that was found or that ended."""

    STAY = "stay"
    WATCH = "watch"  # it runs
    START = "start"
    REMOVE = "remove"


class Step(msgspec.Struct, frozen=True):
    """The next thing to do with one container, and when."""

    action: Next
    pause: int = 0  # ns to wait before


def wants_restart(record: Record, container: Container) -> bool:
    """Whether its policy has it run again, somebody's stopping aside for `always`."""
    policy = record.wish.restart
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return not record.by_hand
        case "on-failure":
            tries = not policy.most or record.restarts < policy.most
            return tries and container.exit_code != 0 and not record.by_hand
        case _:
            return False


def plan_end(record: Record, container: Container) -> Step:
    """A run has ended just now."""
    if record.wanted == "removed" or record.wish.auto_remove:
        return Step(Next.REMOVE)
    if record.by_hand or record.wanted != "running" or not wants_restart(record, container):
        return Step(Next.STAY)
    return Step(Next.START, pause_of(record, container))


def pause_of(record: Record, container: Container) -> int:
    """A tenth of a second, doubled with each restart that did not last, at most a minute."""
    if container.finished_at - container.started_at >= LONG_ENOUGH:
        return FIRST_PAUSE
    return int(min(FIRST_PAUSE << min(record.restarts, 20), LONGEST_PAUSE))


def plan_found(record: Record, container: Container) -> Step:
    """The daemon has just started: what it did not see may have happened."""
    if record.wanted == "removed":
        return Step(Next.REMOVE)
    if container.status == "running":
        return Step(Next.WATCH)
    ran = container.finished_at > 0
    if record.wish.auto_remove and (ran or record.started):
        return Step(Next.REMOVE)
    if ran and record.started and wants_restart(record, container):
        return Step(Next.START)
    if record.wanted == "running" and not ran and not record.started:
        return Step(Next.START)  # somebody started it, and the daemon ended in between
    return Step(Next.STAY)
