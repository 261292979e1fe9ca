"""What the host's own HNS refused of the driver's documents, until it takes them.

Owns which documents those are, saying each refusal once, and what it means for a task. Must not try again: every pass
of the driver does.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from overlace.model.errors import Conflict, InvalidArgument, OverlaceError, Unavailable
from overlace.network.hns.documents import Guid
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.plan import Delete, ModifyNamespace, Operation

log = structlog.get_logger(__name__)


Refusal = HcnError | OverlaceError  # of our own HNS, of a Windows host's


class Refusals:
    def __init__(self) -> None:
        self._refused: dict[Guid, Refusal] = {}

    @property
    def ids(self) -> set[Guid]:
        """Of the documents: another may have to go before one of these fits."""
        return set(self._refused)

    def texts(self) -> list[str]:
        return [str(e) for e in self._refused.values()]

    def note(self, refused: Iterable[tuple[Operation, Refusal]]) -> None:
        """What the newest pass was refused; what it was not is refused no longer."""
        before, self._refused = self._refused, {}
        for op, error in refused:
            if isinstance(op, ModifyNamespace):
                guid = op.namespace
            else:
                guid = op.id if isinstance(op, Delete) else op.document.id
            self._refused[guid] = error
            if str(before.get(guid)) != str(error):
                log.warning("HNS refused", operation=type(op).__name__, id=guid, error=str(error))

    def explain(self, task_name: str, ids: Iterable[Guid]) -> OverlaceError:
        """Why a task's endpoint is not there; `ids`: the documents it takes."""
        for guid in ids:
            error = self._refused.get(guid)
            if error is None:
                continue
            code = _code(error)
            if code == Code.PORT_ALREADY_EXISTS:
                return Conflict(
                    f"driver failed programming external connectivity on endpoint {task_name}: {_detail(error)}"
                )
            if code == Code.ADDR_INVALID_OR_RESERVED:
                return Unavailable(_detail(error))  # its last holder has not left yet
            return error if isinstance(error, Unavailable) else InvalidArgument(str(error))
        return Unavailable(f"task {task_name}: its network left this node meanwhile")


def _code(error: Refusal) -> int:
    return int(error.code) if isinstance(error, HcnError) else getattr(error, "hresult", 0)


def _detail(error: Refusal) -> str:
    return error.detail if isinstance(error, HcnError) else error.message
