"""A host looks at itself: what `overlace trace` asks of it.

Owns which question is which call of the data path, and that none of them can fail the asker. Must not change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from overlace.model.errors import OverlaceError
from overlace.model.findings import (
    Arm,
    Collect,
    Examine,
    Finding,
    Inject,
    OpenSockets,
    Question,
    Said,
    Sighting,
)
from overlace.network.base import Inside

log = structlog.get_logger(__name__)


class Looked(Protocol):
    """What is needed of a data path."""

    async def audit(self, inside: Iterable[Inside]) -> list[Finding]: ...
    async def listening(self, sandboxes: Mapping[str, Path], protocol: int) -> list[OpenSockets]: ...
    async def arm(self, mark: int) -> None: ...
    async def collect(self, mark: int) -> list[Sighting]: ...
    async def inject(self, sandbox: Path | None, ask: Inject) -> str: ...


async def look(
    datapath: Looked,
    question: Question,
    inside: Callable[[], Iterable[Inside]],
    sandbox: Callable[[str], Path | None],
    refused: Iterable[str],
) -> Said:
    """`inside`: containers' interfaces of this host; `sandbox`: of a task, None when it is not here."""
    try:
        match question:
            case Examine():
                found = await datapath.audit(inside())
                found += [
                    Finding(
                        what=f"HNS refuses: {text}", remedy="the host's daemon tries again with every change"
                    )
                    for text in refused
                ]
                return Said(findings=tuple(found), listening=await _listening(datapath, question, sandbox))
            case Arm(mark):
                await datapath.arm(mark)
                return Said()
            case Collect(mark):
                return Said(sightings=tuple(await datapath.collect(mark)))
            case Inject():
                where = sandbox(question.task_id) if question.task_id else None
                if question.task_id and where is None:
                    return Said(error=f"task {question.task_id} has no container here")
                return Said(answer=await datapath.inject(where, question))
    except (OSError, ValueError, OverlaceError) as e:
        return Said(error=str(e) or type(e).__name__)
    except Exception as e:
        log.exception("looking failed")
        return Said(error=f"{type(e).__name__}: {e}")


async def _listening(
    datapath: Looked, question: Examine, sandbox: Callable[[str], Path | None]
) -> tuple[OpenSockets, ...]:
    here = {id: path for id in question.tasks if (path := sandbox(id)) is not None}
    found = await datapath.listening(here, question.protocol) if here else []
    gone = (
        OpenSockets(task_id=id, error="it has no container here") for id in question.tasks if id not in here
    )
    return (*found, *gone)
