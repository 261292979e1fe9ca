"""The one tree of errors; each class carries the HTTP status an edge answers with.

    OverlaceError
    ├── InvalidArgument      400   a field has a wrong value
    ├── FailedPrecondition   400   right words, wrong moment (in use, last manager …)
    ├── Unauthenticated      401
    ├── PermissionDenied     403
    ├── NotFound             404
    ├── Conflict             409   exists already, or is held
    ├── Internal             500
    │   └── OutOfSequence    500   stale version; Docker's status and words, which clients match on
    ├── Unimplemented        501
    └── Unavailable          503   not (yet) able: no manager, no registry, no disk
        ├── NotReached         503   nothing was sent, so asking again is safe
        └── NoLeader         503   no manager leads now, in Docker's words
            └── NotLeading         this one does not: passed on to the one that does

Owns the classes and the status map. Must not know HTTP servers; each edge maps once.
Statuses follow moby's daemon/server/httpstatus.
"""

from __future__ import annotations


class OverlaceError(Exception):
    """Base. `message` is what a person reads; `code` is the gRPC code name Docker prints."""

    status = 500
    code = "Unknown"
    swarm = False  # set on errors of the swarm's control API: shown as `rpc_text` at Docker's API

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(OverlaceError):
    status = 400
    code = "InvalidArgument"


class FailedPrecondition(OverlaceError):
    status = 400
    code = "FailedPrecondition"


class Unauthenticated(OverlaceError):
    status = 401
    code = "Unauthenticated"


class PermissionDenied(OverlaceError):
    status = 403
    code = "PermissionDenied"


class NotFound(OverlaceError):
    status = 404
    code = "NotFound"


class Conflict(OverlaceError):
    status = 409
    code = "AlreadyExists"


class Internal(OverlaceError):
    status = 500
    code = "Internal"


class OutOfSequence(Internal):
    code = "Unknown"

    def __init__(self, message: str = "update out of sequence") -> None:
        super().__init__(message)


class Unimplemented(OverlaceError):
    status = 501
    code = "Unimplemented"


class Unavailable(OverlaceError):
    status = 503
    code = "Unavailable"


class NotReached(Unavailable):
    """Nothing was sent to the other side: asking again, or another, does nothing twice."""


class NoLeader(Unavailable):
    """`reason` is for logs; people read Docker's words (swarmkit raft ErrNoRaftLeader, moby daemon/cluster)."""

    code = "Unknown"
    swarm = True

    def __init__(self, reason: str = "") -> None:
        super().__init__(
            "The swarm does not have a leader. It's possible that too few managers are online. "
            "Make sure more than half of the managers are online."
        )
        self.reason = reason


class NotLeading(NoLeader):
    """This manager does not lead: the request is the leader's to answer, and is passed on."""


def rpc_text(error: OverlaceError) -> str:
    """The words a swarm-store error has at Docker's API, where it passes through a local gRPC call.

    Source: moby daemon/cluster (errors of the control API reach the client as `rpc error: code = X desc = Y`).
    """
    return f"rpc error: code = {error.code} desc = {error.message}"
