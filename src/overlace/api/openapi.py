"""The swarm part of the API as an OpenAPI 3.1 document, served at /openapi.json.

Owns what is promised of each call: parameters, statuses, the members of every answer. Bodies of requests are the structs
of `model/specs.py` themselves, so that document and decoder cannot differ. Pure. Must not know how an answer is made:
tests hold routes and answers against this document (tests/unit/api/test_openapi.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import msgspec

from overlace.api.backend import InitRequest, JoinRequest
from overlace.api.routes.networks import CreateRequest
from overlace.api.version import API_VERSION, SERVER_VERSION, version_text
from overlace.manager.control import lookup
from overlace.model.specs import ConfigSpec, NodeSpec, SecretSpec, ServiceSpec, SwarmSpec, TaskSpec
from overlace.model.states import NodeState, TaskState

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
FLAG: Json = {"type": "boolean"}
TIME: Json = {"type": "string", "format": "date-time"}
TEXTS: Json = {"type": "object", "additionalProperties": TEXT}
ANYTHING: Json = {"type": "object"}
ID: Json = {"type": "string", "minLength": 1}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def shape(optional: Json | None = None, /, **members: Json) -> Json:
    """An object with exactly these members; those of `optional` may be absent."""
    return {
        "type": "object",
        "properties": {**members, **(optional or {})},
        "required": list(members),
        "additionalProperties": False,
    }


_HEADER = {"ID": ID, "Version": shape(Index=NUMBER), "CreatedAt": TIME, "UpdatedAt": TIME}
_TLS = shape({"TrustRoot": TEXT, "CertIssuerSubject": TEXT, "CertIssuerPublicKey": TEXT})
_PORTS = list_of(ref("PortConfig"))
_JOB = shape({"Index": NUMBER})
_IPAM = shape({"Subnet": TEXT, "IPRange": TEXT, "Gateway": TEXT, "AuxiliaryAddresses": TEXTS})
_CONTAINER = shape(Name=TEXT, EndpointID=TEXT, MacAddress=TEXT, IPv4Address=TEXT, IPv6Address=TEXT)
_CLUSTER = {
    **_HEADER,
    "Spec": ref("SwarmSpec"),
    "TLSInfo": _TLS,
    "RootRotationInProgress": FLAG,
    "DefaultAddrPool": list_of(TEXT),
    "SubnetSize": NUMBER,
    "DataPathPort": NUMBER,
}
_NODE_DESCRIPTION = shape(
    {"Hostname": TEXT},
    Platform=shape({"Architecture": TEXT, "OS": TEXT, "OSVersion": TEXT}),
    Resources=shape({"NanoCPUs": NUMBER, "MemoryBytes": NUMBER, "GenericResources": list_of(ANYTHING)}),
    Engine=shape({"EngineVersion": TEXT, "Labels": TEXTS, "Plugins": list_of(shape(Type=TEXT, Name=TEXT))}),
    TLSInfo=_TLS,
)
_STATE = {"enum": [state.word for state in TaskState]}

# What answers are made of. Specs in answers are the structs requests are made of.
_ANSWERS: dict[str, Json] = {
    "Error": shape(message={"type": "string", "minLength": 1}),
    "IDAnswer": shape(ID=ID),
    "ServiceCreated": shape(ID=ID, Warnings=or_null(list_of(TEXT))),
    "ServiceUpdated": shape(Warnings=or_null(list_of(TEXT))),
    "NetworkCreated": shape(Id=ID, Warning=TEXT),
    "NetworksPruned": shape(NetworksDeleted=or_null(list_of(TEXT))),
    "UnlockKey": shape(UnlockKey=TEXT),
    "Swarm": shape(**_CLUSTER, JoinTokens=shape(Worker=TEXT, Manager=TEXT)),
    "Service": shape(
        {
            "PreviousSpec": ref("ServiceSpec"),
            "UpdateStatus": shape(
                {"StartedAt": TIME, "CompletedAt": TIME},
                State={
                    "enum": [
                        "updating",
                        "paused",
                        "completed",
                        "rollback_started",
                        "rollback_paused",
                        "rollback_completed",
                    ]
                },
                Message=TEXT,
            ),
            "JobStatus": shape(JobIteration=_JOB, LastExecution=TIME),
            "ServiceStatus": shape(RunningTasks=NUMBER, DesiredTasks=NUMBER, CompletedTasks=NUMBER),
        },
        **_HEADER,
        Spec=ref("ServiceSpec"),
        Endpoint=shape(
            {"Ports": _PORTS, "VirtualIPs": list_of(shape(NetworkID=ID, Addr=TEXT))}, Spec=ref("EndpointSpec")
        ),
    ),
    "Task": shape(
        {
            "Slot": NUMBER,
            "NodeID": ID,
            "NetworksAttachments": list_of(
                shape({"Aliases": list_of(TEXT)}, Network=ANYTHING, Addresses=list_of(TEXT))
            ),
            "JobIteration": _JOB,
            "GenericResources": list_of(ANYTHING),
        },
        **_HEADER,
        Labels=TEXTS,
        Spec=ref("TaskSpec"),
        ServiceID=TEXT,
        Status=shape(
            {"Err": TEXT, "ContainerStatus": shape(ContainerID=TEXT, PID=NUMBER, ExitCode=NUMBER)},
            Timestamp=TIME,
            State=_STATE,
            Message=TEXT,
            PortStatus=shape({"Ports": _PORTS}),
        ),
        DesiredState=_STATE,
    ),
    "Node": shape(
        {"ManagerStatus": shape({"Leader": FLAG}, Reachability=TEXT, Addr=TEXT)},
        **_HEADER,
        Spec=ref("NodeSpec"),
        Description=_NODE_DESCRIPTION,
        Status=shape({"Message": TEXT}, State={"enum": [state.word for state in NodeState]}, Addr=TEXT),
    ),
    "Secret": shape(
        **_HEADER, Spec=shape({"Driver": ANYTHING, "Templating": ANYTHING}, Name=TEXT, Labels=TEXTS)
    ),
    "Config": shape(**_HEADER, Spec=ref("ConfigSpec")),
    "Network": shape(
        {
            "Peers": list_of(shape(Name=TEXT, IP=TEXT)),
            "Services": {
                "type": "object",
                "additionalProperties": shape(
                    VIP=TEXT,
                    Ports=list_of(TEXT),
                    LocalLBIndex=NUMBER,
                    Tasks=list_of(shape(Name=TEXT, EndpointID=TEXT, EndpointIP=TEXT, Info=TEXTS)),
                ),
            },
            "Error": TEXT,
            "Warning": TEXT,
        },
        Name=TEXT,
        Id=ID,
        Created=TIME,
        Scope={"enum": ["swarm", "local"]},
        Driver=TEXT,
        EnableIPv4=FLAG,
        EnableIPv6=FLAG,
        IPAM=shape(Driver=TEXT, Options=or_null(TEXTS), Config=list_of(_IPAM)),
        Internal=FLAG,
        Attachable=FLAG,
        Ingress=FLAG,
        ConfigFrom=shape(Network=TEXT),
        ConfigOnly=FLAG,
        Containers={"type": "object", "additionalProperties": _CONTAINER},
        Options=TEXTS,
        Labels=TEXTS,
    ),
    "Info": {  # as far as the swarm goes; the rest is the engine's
        "type": "object",
        "required": ["ID", "Name", "Swarm", "ServerVersion", "OSType", "NCPU", "MemTotal"],
        "properties": {
            "Swarm": shape(
                {
                    "Nodes": NUMBER,
                    "Managers": NUMBER,
                    "Cluster": shape(**_CLUSTER),
                    "Warnings": list_of(TEXT),
                },
                NodeID=TEXT,
                NodeAddr=TEXT,
                LocalNodeState={"enum": ["inactive", "pending", "active", "error", "locked"]},
                ControlAvailable=FLAG,
                Error=TEXT,
                RemoteManagers=or_null(list_of(shape(NodeID=TEXT, Addr=TEXT))),
            )
        },
    },
    "Version": {
        "type": "object",
        "required": ["Version", "ApiVersion", "MinAPIVersion", "Os", "Arch", "Components"],
        "properties": {"Components": list_of(shape({"Details": TEXTS}, Name=TEXT, Version=TEXT))},
    },
}

_BODIES = (
    ServiceSpec, TaskSpec, NodeSpec, SecretSpec, ConfigSpec, SwarmSpec, CreateRequest, InitRequest, JoinRequest,
)  # fmt: skip


# -- parameters ----------------------------------------------------------------------------------------------


def _query(name: str, schema: Json, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _filters(known: Iterable[str]) -> Json:
    """JSON in a parameter: an object of lists, or of objects whose keys count."""
    values = {"anyOf": [list_of(TEXT), {"type": "object", "additionalProperties": FLAG}]}
    inner = {
        "type": "object",
        "properties": {key: values for key in known if not key.startswith("_")},
        "additionalProperties": False,
    }
    return {"name": "filters", "in": "query", "content": {"application/json": {"schema": inner}}}


_VERSION = _query("version", {"type": "integer", "minimum": 0}, required=True)
_SINCE = {"type": "string", "pattern": r"^\d{1,10}(\.\d{1,9})?$"}
_LOGS = (
    *(_query(name, FLAG) for name in ("stdout", "stderr", "timestamps", "details")),
    _query("since", _SINCE),
    _query("until", _SINCE),
    _query("tail", {"type": "string", "pattern": r"^(all|\d{1,6})$"}),
)
_FORCE = _query("force", FLAG)
_UPDATE_SWARM = tuple(
    _query(name, FLAG) for name in ("rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey")
)
_UPDATE_SERVICE = (
    _query("registryAuthFrom", {"enum": ["spec", "previous-spec"]}),
    _query("rollback", {"enum": ["none", "previous"]}),
)


# -- calls ---------------------------------------------------------------------------------------------------

STREAMS = ("application/vnd.docker.multiplexed-stream", "application/vnd.docker.raw-stream")


def _call(
    summary: str,
    status: int,
    answer: Json | tuple[str, ...] | None = None,
    *,
    query: Iterable[Json] = (),
    body: str = "",
    refusals: Iterable[int] = (),
) -> Json:
    """One operation. `answer`: a schema, content types of a stream, or None for an empty body."""
    media = (
        {kind: {} for kind in answer}
        if isinstance(answer, tuple)
        else {"application/json": {"schema": answer}}
    )
    done: Json = {"description": "done"} | ({} if answer is None else {"content": media})
    refused = {"application/json": {"schema": ref("Error")}}
    call: Json = {
        "summary": summary,
        "parameters": list(query),
        "responses": {
            str(status): done,
            **{
                str(code): {"description": "refused", "content": refused}
                for code in sorted({*refusals, 400, 503})
            },
        },
    }
    if body:
        call["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(body)}}}
    return call


def _files(noun: str, plural: str, known: Iterable[str]) -> dict[str, dict[str, Json]]:
    """Secrets and configs: two nouns, the same calls."""
    kind, spec = noun.capitalize(), f"{noun.capitalize()}Spec"
    return {
        f"/{plural}": {"get": _call(f"List {plural}", 200, list_of(ref(kind)), query=[_filters(known)])},
        f"/{plural}/create": {
            "post": _call(f"Create a {noun}", 201, ref("IDAnswer"), body=spec, refusals=(409, 501))
        },
        f"/{plural}/{{id}}": {
            "get": _call(f"Inspect a {noun}", 200, ref(kind), refusals=(404,)),
            "delete": _call(f"Remove a {noun} no service uses", 204, refusals=(404,)),
        },
        f"/{plural}/{{id}}/update": {
            "post": _call(
                f"Change a {noun}'s labels", 200, query=[_VERSION], body=spec, refusals=(404, 500, 501)
            )
        },
    }


def _paths() -> dict[str, dict[str, Json]]:
    services = [_filters(lookup.SERVICE_FILTERS), _query("status", FLAG)]
    verbose = [_query("verbose", FLAG), _query("scope", {"enum": ["swarm", "local"]})]
    return {
        "/_ping": {"get": _call("Whether the daemon answers", 200, ("text/plain",))},
        "/version": {"get": _call("Versions", 200, ref("Version"))},
        "/info": {"get": _call("The engine and its part in the swarm", 200, ref("Info"))},
        "/swarm": {"get": _call("Inspect the swarm", 200, ref("Swarm"))},
        "/swarm/init": {"post": _call("Start a swarm", 200, TEXT, body="InitRequest", refusals=(501,))},
        "/swarm/join": {"post": _call("Join a swarm", 200, body="JoinRequest", refusals=(501,))},
        "/swarm/leave": {"post": _call("Leave the swarm", 200, query=[_FORCE])},
        "/swarm/update": {
            "post": _call(
                "Change the swarm", 200, query=[_VERSION, *_UPDATE_SWARM], body="SwarmSpec", refusals=(500, 501)
            )
        },
        "/swarm/unlockkey": {"get": _call("The unlock key, empty without autolock", 200, ref("UnlockKey"))},
        "/swarm/unlock": {"post": _call("Unlock a manager", 200, body="UnlockKey", refusals=(409,))},
        "/nodes": {"get": _call("List nodes", 200, list_of(ref("Node")), query=[_filters(lookup.NODE_FILTERS)])},
        "/nodes/{id}": {
            "get": _call("Inspect a node", 200, ref("Node"), refusals=(404,)),
            "delete": _call("Remove a node", 200, query=[_FORCE], refusals=(404,)),
        },
        "/nodes/{id}/update": {
            "post": _call("Change a node", 200, query=[_VERSION], body="NodeSpec", refusals=(404, 500, 501))
        },
        "/services": {"get": _call("List services", 200, list_of(ref("Service")), query=services)},
        "/services/create": {
            "post": _call(
                "Create a service", 201, ref("ServiceCreated"), body="ServiceSpec",
                refusals=(403, 404, 409, 500, 501),
            )
        },
        "/services/{id}": {
            "get": _call(
                "Inspect a service", 200, ref("Service"), query=[_query("insertDefaults", FLAG)], refusals=(404,)
            ),
            "delete": _call("Remove a service", 200, refusals=(404,)),
        },
        "/services/{id}/update": {
            "post": _call(
                "Change a service", 200, ref("ServiceUpdated"), query=[_VERSION, *_UPDATE_SERVICE],
                body="ServiceSpec", refusals=(403, 404, 409, 500, 501),
            )
        },
        "/services/{id}/logs": {
            "get": _call("Logs of all tasks of a service", 200, STREAMS, query=_LOGS, refusals=(404,))
        },
        "/tasks": {
            "get": _call(
                "List tasks", 200, list_of(ref("Task")), query=[_filters(lookup.TASK_FILTERS)], refusals=(404,)
            )
        },
        "/tasks/{id}": {"get": _call("Inspect a task", 200, ref("Task"), refusals=(404,))},
        "/tasks/{id}/logs": {"get": _call("Logs of a task", 200, STREAMS, query=_LOGS, refusals=(404,))},
        **_files("secret", "secrets", lookup.SECRET_FILTERS),
        **_files("config", "configs", lookup.CONFIG_FILTERS),
        "/networks": {
            "get": _call(
                "List networks", 200, list_of(ref("Network")), query=[_filters(lookup.NETWORK_FILTERS)]
            )
        },
        "/networks/create": {
            "post": _call(
                "Create a network", 201, ref("NetworkCreated"), body="CreateRequest", refusals=(403, 404, 409, 501)
            )
        },
        "/networks/prune": {
            "post": _call(
                "Remove networks nobody uses", 200, ref("NetworksPruned"), query=[_filters(("label", "label!"))]
            )
        },
        "/networks/{id}": {
            "get": _call("Inspect a network", 200, ref("Network"), query=verbose, refusals=(404, 501)),
            "delete": _call("Remove a network", 204, refusals=(403, 404)),
        },
        "/networks/{id}/connect": {
            "post": _call("Attach a container: refused", 200, body="Attachment", refusals=(403, 404, 501))
        },
        "/networks/{id}/disconnect": {
            "post": _call("Detach a container: refused", 200, body="Attachment", refusals=(403, 404, 501))
        },
    }  # fmt: skip


@functools.cache
def document() -> Json:
    """The whole document."""
    _, components = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    paths = _paths()
    for path, calls in paths.items():
        if "{id}" in path:
            for call in calls.values():
                call["parameters"].insert(0, {"name": "id", "in": "path", "required": True, "schema": ID})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Overlace: the swarm part of the Docker Engine API",
            "version": version_text(API_VERSION),
            "summary": f"As overlace {SERVER_VERSION} serves it, at /v{version_text(API_VERSION)} and without a version.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **components,
                "Attachment": {"type": "object", "properties": {"Container": TEXT}},
                **_ANSWERS,
            }
        },
    }
