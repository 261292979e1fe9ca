"""HNS errors: the numbers and words clients of the Host Networking Service match on.

Owns the code table and the exception. Must not know documents or state.
Source: Microsoft's HCN reference, HCNHResult (facility 0x3B), and the Win32 codes its clients see.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    NETWORK_NOT_FOUND = 0x803B0001
    ENDPOINT_NOT_FOUND = 0x803B0002
    SUBNET_NOT_FOUND = 0x803B0005
    POLICY_NOT_FOUND = 0x803B0008
    INVALID_NETWORK = 0x803B000A
    INVALID_ENDPOINT = 0x803B000C
    INVALID_POLICY = 0x803B000D
    INVALID_POLICY_TYPE = 0x803B000E
    INVALID_REMOTE_ENDPOINT_OPERATION = 0x803B000F
    NETWORK_ALREADY_EXISTS = 0x803B0010
    POLICY_ALREADY_EXISTS = 0x803B0012
    PORT_ALREADY_EXISTS = 0x803B0013
    REQUEST_UNSUPPORTED = 0x803B0015
    MAPPING_NOT_SUPPORTED = 0x803B0016
    GUID_CONVERSION_FAILURE = 0x803B0019
    INVALID_JSON = 0x803B001B
    INVALID_IP = 0x803B001E
    ENDPOINT_NAMESPACE_ALREADY_EXISTS = 0x803B002B
    ENTITY_HAS_REFERENCES = 0x803B002C
    INVALID_INTERNAL_PORT = 0x803B002D
    ADDR_INVALID_OR_RESERVED = 0x803B002F
    INVALID_PREFIX = 0x803B0030
    INVALID_SUBNET = 0x803B0032
    INTERFACEPARAMETERS_ALREADY_APPLIED = 0x803B0036
    NOT_FOUND = 0x80070490
    ALREADY_EXISTS = 0x800700B7
    BAD_PARAMETER = 0x80070057


TEXTS: dict[Code, str] = {
    Code.NETWORK_NOT_FOUND: "The network was not found.",
    Code.ENDPOINT_NOT_FOUND: "The endpoint was not found.",
    Code.SUBNET_NOT_FOUND: "The network does not have a subnet for this endpoint.",
    Code.POLICY_NOT_FOUND: "An expected policy was not found.",
    Code.INVALID_NETWORK: "The provided network configuration is invalid or missing parameters.",
    Code.INVALID_ENDPOINT: "The provided endpoint configuration is invalid or missing parameters.",
    Code.INVALID_POLICY: "The provided policy configuration is invalid or missing parameters.",
    Code.INVALID_POLICY_TYPE: "Invalid policy type.",
    Code.INVALID_REMOTE_ENDPOINT_OPERATION: "This requested operation is invalid for a remote endpoint.",
    Code.NETWORK_ALREADY_EXISTS: "A network with this name already exists.",
    Code.POLICY_ALREADY_EXISTS: "Policy information already exists on this object.",
    Code.PORT_ALREADY_EXISTS: "The specified port already exists.",
    Code.REQUEST_UNSUPPORTED: "The specified request is unsupported.",
    Code.MAPPING_NOT_SUPPORTED: "Port mapping is not supported on the given network.",
    Code.GUID_CONVERSION_FAILURE: "Failed to interpret a parameter as a GUID.",
    Code.INVALID_JSON: "Invalid JSON document string.",
    Code.INVALID_IP: "IP address is either invalid or not part of any configured subnet(s).",
    Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS: (
        "This requested operation is invalid as endpoint is already part of a network namespace."
    ),
    Code.ENTITY_HAS_REFERENCES: "The specified entity cannot be removed while it still has references.",
    Code.INVALID_INTERNAL_PORT: "The internal port must exist and cannot be zero.",
    Code.ADDR_INVALID_OR_RESERVED: "An address provided is invalid or reserved.",
    Code.INVALID_PREFIX: "The prefix provided is invalid.",
    Code.INVALID_SUBNET: "The provided subnet configuration is invalid or missing parameters.",
    Code.INTERFACEPARAMETERS_ALREADY_APPLIED: "Cannot apply more than one InterfaceParameters policy.",
    Code.NOT_FOUND: "Element not found.",
    Code.ALREADY_EXISTS: "Cannot create a file when that file already exists.",
    Code.BAD_PARAMETER: "The parameter is incorrect.",
}


class HcnError(Exception):
    """A refused HNS call. `code` is the HRESULT, `detail` names field, value and remedy."""

    def __init__(self, code: Code, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        text = f"{TEXTS[code]} ({int(code):#010x})"
        super().__init__(f"{text}: {detail}" if detail else text)

    def record(self) -> dict[str, object]:
        """The error record HNS returns beside a failing HRESULT (its text ends in a blank)."""
        return {"Success": False, "Error": TEXTS[self.code] + " ", "ErrorCode": int(self.code)}
