"""A Windows host looks at itself: what `overlace trace` can be told of a host whose switch is not ours.

Owns which questions documents answer, and saying which they do not. Must not change anything nor fail the asker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from overlace.model.errors import OverlaceError
from overlace.model.findings import Arm, Collect, Examine, Finding, Inject, OpenSockets, Question, Said
from overlace.network.hns.documents import HostComputeEndpoint
from overlace.network.hns.plan import Create, Delete, ModifyNamespace, Operation, Replace

log = structlog.get_logger(__name__)
NO_PACKETS = (
    "a Windows host's packets cannot be marked or watched: HNS has no call for it. What its documents come to is in the "
    "trace; `vfpctrl /list-unified-flow` on the host shows its real flows"
)
NO_SOCKETS = (
    "a Windows host's HNS does not say at which ports a container listens: `docker exec CONTAINER netstat -an` on the "
    "host does"
)
AGAIN = "the host's daemon puts it back with its next pass, within five minutes at the latest"


async def look(
    question: Question,
    differences: Callable[[], Awaitable[Sequence[Operation]]],
    refused: Iterable[str],
    deaf: str,
) -> Said:
    """`differences`: what a pass would do now; `refused`: what HNS refuses; `deaf`: why names are not answered."""
    try:
        match question:
            case Examine():
                found = [explain_operation(op) for op in await differences()]
                found += [
                    Finding(
                        what=f"HNS refuses: {text}",
                        remedy="the host's daemon tries again, every half minute at least",
                    )
                    for text in refused
                ]
                if deaf:
                    found.append(
                        Finding(what=deaf, remedy="end the other DNS server, or bind it to other addresses")
                    )
                return Said(
                    findings=tuple(found),
                    listening=tuple(OpenSockets(task_id=id, error=NO_SOCKETS) for id in question.tasks),
                )
            case Arm() | Collect() | Inject():
                return Said(error=NO_PACKETS, unable=True)
    except (OSError, ValueError, OverlaceError) as e:
        return Said(error=str(e) or type(e).__name__)
    except Exception as e:
        log.exception("looking failed")
        return Said(error=f"{type(e).__name__}: {e}")


def explain_operation(op: Operation) -> Finding:
    """What is wrong on the host that this operation would mend."""
    match op:
        case Delete():
            return Finding(what=f"HNS has {op.kind} {op.id} that nothing asks for", remedy=AGAIN)
        case Create():
            what = f"HNS lacks {op.document.kind} {op.document.name or op.document.id}"
        case Replace():
            what = f"load balancer {op.document.name} is not as it should be in HNS"
        case ModifyNamespace():
            return Finding(
                what=f"namespace {op.namespace} has other endpoints than it should",
                remedy=AGAIN,
                about=(op.request.settings.endpoint_id,),
            )
        case _:
            what = f"policies of {op.document.kind} {op.document.name} are not as they should be in HNS"
    about = [op.document.id]
    if isinstance(op.document, HostComputeEndpoint):
        about.append(op.document.address)
    return Finding(what=what, remedy=AGAIN, about=tuple(about))
