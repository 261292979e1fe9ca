"""HRESULTs of HNS as errors of the one tree.

Owns which class a failure is. Must not load libraries.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    Unavailable,
    Unimplemented,
)
from overlace.network.hns.errors import TEXTS, Code


class HnsFailed(OverlaceError):
    """Beside its class of the tree: `hresult`, unsigned."""

    hresult = 0


class HnsNotFound(HnsFailed, NotFound):
    pass


class HnsConflict(HnsFailed, Conflict):
    pass


class HnsInvalid(HnsFailed, InvalidArgument):
    pass


class HnsPrecondition(HnsFailed, FailedPrecondition):
    pass


class HnsUnimplemented(HnsFailed, Unimplemented):
    pass


class HnsUnavailable(HnsFailed, Unavailable):
    pass


class HnsInternal(HnsFailed, Internal):
    pass


_KINDS: dict[type[HnsFailed], tuple[Code, ...]] = {
    HnsNotFound: (
        Code.NOT_FOUND,
        Code.OBJECT_NOT_FOUND,
        Code.OBJECT_USED_AFTER_UNLOAD,
        Code.NETWORK_NOT_FOUND,
        Code.ENDPOINT_NOT_FOUND,
        Code.POLICY_NOT_FOUND,
    ),
    HnsConflict: (
        Code.ALREADY_EXISTS,
        Code.NETWORK_ALREADY_EXISTS,
        Code.LAYER_ALREADY_EXISTS,
        Code.POLICY_ALREADY_EXISTS,
        Code.PORT_ALREADY_EXISTS,
        Code.ENDPOINT_ALREADY_ATTACHED,
        Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS,
        Code.GCN_DEFAULTNAMESPACE_EXISTS,
        Code.ADDR_INVALID_OR_RESERVED,
        Code.INTERFACEPARAMETERS_ALREADY_APPLIED,
    ),
    HnsPrecondition: (
        Code.ENTITY_HAS_REFERENCES,
        Code.ENDPOINT_NOT_ATTACHED,
        Code.ENDPOINT_NOT_LOCAL,
        Code.DEGRADED_OPERATION,
        Code.SHARED_SWITCH_MODIFICATION,
        Code.INVALID_REMOTE_ENDPOINT_OPERATION,
        Code.NAMESPACE_ATTACH_FAILED,
    ),
    HnsUnimplemented: (
        Code.NOT_IMPLEMENTED,
        Code.NOT_SUPPORTED,
        Code.REQUEST_UNSUPPORTED,
        Code.GCN_REQUEST_UNSUPPORTED,
        Code.MAPPING_NOT_SUPPORTED,
        Code.VFP_NOT_ALLOWED,
        Code.ENDPOINT_SHARING_DISABLED,
        Code.ICS_DISABLED,
    ),
    # HNS is away or not ready: worth another try
    HnsUnavailable: (
        Code.MANAGER_STOPPED,
        Code.SERVER_TOO_BUSY,
        Code.ADAPTER_NOT_FOUND,
        Code.SWITCH_NOT_FOUND,
        Code.PORT_NOT_FOUND,
        Code.LAYER_NOT_FOUND,
        Code.VFP_PORTSETTING_NOT_FOUND,
        Code.GCN_NETADAPTER_TIMEOUT,
        Code.GCN_NETADAPTER_NOT_FOUND,
    ),
    HnsInternal: (
        Code.REGKEY_FAILURE,
        Code.UNEXPECTED,
        Code.INVALID_HANDLE,
        Code.GCN_MODULE_NOT_FOUND,
        Code.GCN_NO_REQUEST_HANDLERS,
        Code.GCN_RUNTIMEKEYS_FAILED,
        Code.GCN_NETCOMPARTMENT_NOT_FOUND,
        Code.GCN_NETINTERFACE_NOT_FOUND,
    ),
}
# HNS's answers say a code in words: "... (0x803b0014)" is not always there
_BY_TEXT = [(TEXTS[code], int(code)) for code in Code]


class _Answer(msgspec.Struct):
    success: bool = msgspec.field(name="Success")
    error: str = msgspec.field(default="", name="Error")
    error_code: int = msgspec.field(default=0, name="ErrorCode")
    output: Any = msgspec.field(default=None, name="Output")


_BY_CODE = {int(code): kind for kind, codes in _KINDS.items() for code in codes}
# RPC's own, when the service does not run
_RPC = {
    0x800706BA: "The RPC server is unavailable.",
    0x800706BE: "The remote procedure call failed.",
    0x80070426: "The service has not been started.",
}


def is_away(error: OverlaceError) -> bool:
    """Whether there is no HNS at all just now: it was stopped, or restarts."""
    number = getattr(error, "hresult", 0)
    return number in _RPC or number == Code.MANAGER_STOPPED


def answered(what: str, text: str) -> Any:
    """The output of an answer of HNSCall. Raises HnsFailed for one that says no."""
    try:
        answer = msgspec.json.decode(text or "null", type=_Answer)
    except msgspec.MsgspecError as e:
        raise HnsInternal(f"{what}: no answer of HNS: {e}") from None
    if not answer.success:
        number = answer.error_code or next((c for t, c in _BY_TEXT if answer.error.startswith(t)), 0x80004005)
        raise failure(number, what, answer.error)
    return answer.output


def failure(hresult: int, what: str, text: str = "") -> HnsFailed:
    """The error for a failing HRESULT (signed or not) of the call `what`; `text`: the error record's. A code that says
    a document is wrong is InvalidArgument; one that is not known is Internal."""
    number = hresult & 0xFFFFFFFF
    if number in _RPC:
        kind: type[HnsFailed] = HnsUnavailable
    elif number in _BY_CODE:
        kind = _BY_CODE[number]
    else:
        kind = HnsInvalid if number in set(Code) else HnsInternal
    words = (
        text.strip()
        or _RPC.get(number, "")
        or (TEXTS[Code(number)] if number in set(Code) else "unknown failure")
    )
    error = kind(f"{what}: {words} ({number:#010x})")
    error.hresult = number
    return error
