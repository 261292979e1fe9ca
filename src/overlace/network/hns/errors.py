"""HNS errors: the numbers and words clients of the Host Networking Service match on.

Owns the code table and the exception. Must not know documents or state.
Source: Microsoft's HCN reference, HCNHResult (facility 0x3B), and the Win32 codes its clients see.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    NETWORK_NOT_FOUND = 0x803B0001
    ENDPOINT_NOT_FOUND = 0x803B0002
    LAYER_NOT_FOUND = 0x803B0003
    SWITCH_NOT_FOUND = 0x803B0004
    SUBNET_NOT_FOUND = 0x803B0005
    ADAPTER_NOT_FOUND = 0x803B0006
    PORT_NOT_FOUND = 0x803B0007
    POLICY_NOT_FOUND = 0x803B0008
    VFP_PORTSETTING_NOT_FOUND = 0x803B0009
    INVALID_NETWORK = 0x803B000A
    INVALID_NETWORK_TYPE = 0x803B000B
    INVALID_ENDPOINT = 0x803B000C
    INVALID_POLICY = 0x803B000D
    INVALID_POLICY_TYPE = 0x803B000E
    INVALID_REMOTE_ENDPOINT_OPERATION = 0x803B000F
    NETWORK_ALREADY_EXISTS = 0x803B0010
    LAYER_ALREADY_EXISTS = 0x803B0011
    POLICY_ALREADY_EXISTS = 0x803B0012
    PORT_ALREADY_EXISTS = 0x803B0013
    ENDPOINT_ALREADY_ATTACHED = 0x803B0014
    REQUEST_UNSUPPORTED = 0x803B0015
    MAPPING_NOT_SUPPORTED = 0x803B0016
    DEGRADED_OPERATION = 0x803B0017
    SHARED_SWITCH_MODIFICATION = 0x803B0018
    GUID_CONVERSION_FAILURE = 0x803B0019
    REGKEY_FAILURE = 0x803B001A
    INVALID_JSON = 0x803B001B
    INVALID_JSON_REFERENCE = 0x803B001C
    ENDPOINT_SHARING_DISABLED = 0x803B001D
    INVALID_IP = 0x803B001E
    SWITCH_EXTENSION_NOT_FOUND = 0x803B001F
    MANAGER_STOPPED = 0x803B0020
    GCN_MODULE_NOT_FOUND = 0x803B0021
    GCN_NO_REQUEST_HANDLERS = 0x803B0022
    GCN_REQUEST_UNSUPPORTED = 0x803B0023
    GCN_RUNTIMEKEYS_FAILED = 0x803B0024
    GCN_NETADAPTER_TIMEOUT = 0x803B0025
    GCN_NETADAPTER_NOT_FOUND = 0x803B0026
    GCN_NETCOMPARTMENT_NOT_FOUND = 0x803B0027
    GCN_NETINTERFACE_NOT_FOUND = 0x803B0028
    GCN_DEFAULTNAMESPACE_EXISTS = 0x803B0029
    ICS_DISABLED = 0x803B002A
    ENDPOINT_NAMESPACE_ALREADY_EXISTS = 0x803B002B
    ENTITY_HAS_REFERENCES = 0x803B002C
    INVALID_INTERNAL_PORT = 0x803B002D
    NAMESPACE_ATTACH_FAILED = 0x803B002E
    ADDR_INVALID_OR_RESERVED = 0x803B002F
    INVALID_PREFIX = 0x803B0030
    OBJECT_USED_AFTER_UNLOAD = 0x803B0031
    INVALID_SUBNET = 0x803B0032
    INVALID_IP_SUBNET = 0x803B0033
    ENDPOINT_NOT_ATTACHED = 0x803B0034
    ENDPOINT_NOT_LOCAL = 0x803B0035
    INTERFACEPARAMETERS_ALREADY_APPLIED = 0x803B0036
    VFP_NOT_ALLOWED = 0x803B0037
    NOT_IMPLEMENTED = 0x80004001
    UNEXPECTED = 0x8000FFFF
    INVALID_HANDLE = 0x80070006
    NOT_SUPPORTED = 0x80070032
    NOT_FOUND = 0x80070490
    ALREADY_EXISTS = 0x800700B7
    BAD_PARAMETER = 0x80070057
    SERVER_TOO_BUSY = 0x800706BB
    SYSTEM_NOT_FOUND = 0x8037010E  # the Host Compute Service's: no such container
    OBJECT_NOT_FOUND = 0x800710D8  # what HNSCall says of an unknown id; moby matches on its text


TEXTS: dict[Code, str] = {
    Code.NETWORK_NOT_FOUND: "The network was not found.",
    Code.ENDPOINT_NOT_FOUND: "The endpoint was not found.",
    Code.LAYER_NOT_FOUND: "The network's underlying layer was not found.",
    Code.SWITCH_NOT_FOUND: "The virtual switch was not found.",
    Code.SUBNET_NOT_FOUND: "The network does not have a subnet for this endpoint.",
    Code.ADAPTER_NOT_FOUND: "An adapter was not found.",
    Code.PORT_NOT_FOUND: "The switch-port was not found.",
    Code.POLICY_NOT_FOUND: "An expected policy was not found.",
    Code.VFP_PORTSETTING_NOT_FOUND: "A required VFP port setting was not found.",
    Code.INVALID_NETWORK: "The provided network configuration is invalid or missing parameters.",
    Code.INVALID_NETWORK_TYPE: "Invalid network type.",
    Code.INVALID_ENDPOINT: "The provided endpoint configuration is invalid or missing parameters.",
    Code.INVALID_POLICY: "The provided policy configuration is invalid or missing parameters.",
    Code.INVALID_POLICY_TYPE: "Invalid policy type.",
    Code.INVALID_REMOTE_ENDPOINT_OPERATION: "This requested operation is invalid for a remote endpoint.",
    Code.NETWORK_ALREADY_EXISTS: "A network with this name already exists.",
    Code.LAYER_ALREADY_EXISTS: "A network with this name already exists.",
    Code.POLICY_ALREADY_EXISTS: "Policy information already exists on this object.",
    Code.PORT_ALREADY_EXISTS: "The specified port already exists.",
    Code.ENDPOINT_ALREADY_ATTACHED: "This endpoint is already attached to the switch.",
    Code.REQUEST_UNSUPPORTED: "The specified request is unsupported.",
    Code.MAPPING_NOT_SUPPORTED: "Port mapping is not supported on the given network.",
    Code.DEGRADED_OPERATION: "There was an operation attempted on a degraded object.",
    Code.SHARED_SWITCH_MODIFICATION: "Cannot modify a switch shared by multiple networks.",
    Code.GUID_CONVERSION_FAILURE: "Failed to interpret a parameter as a GUID.",
    Code.REGKEY_FAILURE: "Failed to process registry key.",
    Code.INVALID_JSON: "Invalid JSON document string.",
    Code.INVALID_JSON_REFERENCE: "The reference is invalid in the JSON document.",
    Code.ENDPOINT_SHARING_DISABLED: "Endpoint sharing is disabled.",
    Code.INVALID_IP: "IP address is either invalid or not part of any configured subnet(s).",
    Code.SWITCH_EXTENSION_NOT_FOUND: "The specified switch extension does not exist on this switch.",
    Code.MANAGER_STOPPED: "Operation cannot be performed while service is stopping.",
    Code.GCN_MODULE_NOT_FOUND: "Operation cannot be performed while service module not found.",
    Code.GCN_NO_REQUEST_HANDLERS: "Request Handlers not present to handle the JSON request.",
    Code.GCN_REQUEST_UNSUPPORTED: "The specified request is unsupported.",
    Code.GCN_RUNTIMEKEYS_FAILED: "Add runtime keys to container failed.",
    Code.GCN_NETADAPTER_TIMEOUT: "Timeout while waiting for network adapter with the given instance id.",
    Code.GCN_NETADAPTER_NOT_FOUND: "Network adapter not found for the given instance id.",
    Code.GCN_NETCOMPARTMENT_NOT_FOUND: "Network compartment not found for the given id.",
    Code.GCN_NETINTERFACE_NOT_FOUND: "Network interface not found for the given id.",
    Code.GCN_DEFAULTNAMESPACE_EXISTS: "Default Namespace already exists.",
    Code.ICS_DISABLED: "Internet Connection Sharing service (SharedAccess) is disabled and cannot be started.",
    Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS: (
        "This requested operation is invalid as endpoint is already part of a network namespace."
    ),
    Code.ENTITY_HAS_REFERENCES: "The specified entity cannot be removed while it still has references.",
    Code.INVALID_INTERNAL_PORT: "The internal port must exist and cannot be zero.",
    Code.NAMESPACE_ATTACH_FAILED: "The requested operation for attach namespace failed.",
    Code.ADDR_INVALID_OR_RESERVED: "An address provided is invalid or reserved.",
    Code.INVALID_PREFIX: "The prefix provided is invalid.",
    Code.OBJECT_USED_AFTER_UNLOAD: "A call was performed against an object that was torn down.",
    Code.INVALID_SUBNET: "The provided subnet configuration is invalid or missing parameters.",
    Code.INVALID_IP_SUBNET: "The provided IP subnet configuration is invalid or missing parameters.",
    Code.ENDPOINT_NOT_ATTACHED: "The endpoint must be attached to complete the operation.",
    Code.ENDPOINT_NOT_LOCAL: "The endpoint must be local to complete the operation.",
    Code.INTERFACEPARAMETERS_ALREADY_APPLIED: "Cannot apply more than one InterfaceParameters policy.",
    Code.VFP_NOT_ALLOWED: "A network of this type can not be created because VFP is not available.",
    Code.NOT_IMPLEMENTED: "Not implemented.",
    Code.UNEXPECTED: "Catastrophic failure.",
    Code.INVALID_HANDLE: "The handle is invalid.",
    Code.NOT_SUPPORTED: "The request is not supported.",
    Code.NOT_FOUND: "Element not found.",
    Code.ALREADY_EXISTS: "Cannot create a file when that file already exists.",
    Code.BAD_PARAMETER: "The parameter is incorrect.",
    Code.SERVER_TOO_BUSY: "The RPC server is too busy to complete this operation.",
    Code.SYSTEM_NOT_FOUND: "A virtual machine or container with the specified identifier does not exist.",
    Code.OBJECT_NOT_FOUND: "The object identifier does not represent a valid object.",
}


class HcnError(Exception):
    """A refused HNS call. `code` is the HRESULT, `detail` names field, value and remedy."""

    def __init__(self, code: Code, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        text = f"{TEXTS[code]} ({int(code):#010x})"
        super().__init__(f"{text}: {detail}" if detail else text)

    def record(self) -> dict[str, object]:
        """The error record HNS returns beside a failing HRESULT. Its text ends in a blank; ours goes on with
        the detail, except where clients compare the whole text."""
        text = TEXTS[self.code] + " "
        if self.detail and self.code not in (Code.NOT_FOUND, Code.OBJECT_NOT_FOUND):
            text += self.detail + " "
        return {"Success": False, "Error": text, "ErrorCode": int(self.code)}
