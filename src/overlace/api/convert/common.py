"""What all conversions share: spec documents, object headers, and documents rendered once per object
version.

Owns which members of a spec are shown. Go shows a member unless it is marked `omitempty` and zero, so that
a client reading our JSON meets the same absences; `_SHOWN` lists the unmarked ones and those whose default
is not Go's zero.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from typing import Any

import msgspec

from overlace.api.codec import rfc3339
from overlace.model.objects import Base
from overlace.model.specs import (
    CAConfig,
    ConfigReference,
    ConfigSpec,
    DispatcherConfig,
    Doc,
    EncryptionConfig,
    FileTarget,
    NodeSpec,
    OrchestrationConfig,
    PortConfig,
    RaftConfig,
    RestartPolicy,
    SecretReference,
    SecretSpec,
    ServiceSpec,
    SwarmSpec,
    TaskSpec,
    UpdateConfig,
)

Json = dict[str, Any]

_SHOWN: dict[type[Doc], tuple[str, ...]] = {
    ServiceSpec: ("name", "labels", "task_template", "mode"),
    TaskSpec: ("force_update",),
    UpdateConfig: ("parallelism", "max_failure_ratio", "order"),
    RestartPolicy: ("condition",),
    FileTarget: ("name", "uid", "gid", "mode"),
    SecretReference: ("secret_id", "secret_name"),
    ConfigReference: ("config_id", "config_name"),
    PortConfig: ("protocol", "publish_mode"),
    NodeSpec: ("labels", "role", "availability"),
    SecretSpec: ("name", "labels"),
    ConfigSpec: ("name", "labels"),
    SwarmSpec: ("name", "labels"),
    OrchestrationConfig: ("task_history_retention_limit",),
    DispatcherConfig: ("heartbeat_period",),
    CAConfig: ("node_cert_expiry",),
    EncryptionConfig: ("auto_lock_managers",),
    RaftConfig: (
        "snapshot_interval",
        "keep_old_snapshots",
        "log_entries_for_slow_followers",
        "election_tick",
        "heartbeat_tick",
    ),
}


@functools.cache
def _members(kind: type[Doc]) -> tuple[tuple[str, str, bool, bool], ...]:
    """(attribute, JSON name, shown even when zero, absent means None) per member."""
    always = _SHOWN.get(kind, ())
    return tuple(
        (f.name, f.encode_name, f.name in always, f.default is None) for f in msgspec.structs.fields(kind)
    )


def document(doc: Doc) -> Json:
    """A spec with Docker's member names, zeros omitted as Go does."""
    found: Json = {}
    for name, shown_as, always, optional in _members(type(doc)):
        value = getattr(doc, name)
        if isinstance(value, Doc):
            found[shown_as] = document(value)
        elif always or (value is not None if optional else bool(value)):
            found[shown_as] = _value(value)
    return found


def _value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_value(v) for v in value]
    if isinstance(value, Doc):
        return document(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def header(thing: Base) -> Json:
    return {
        "ID": thing.id,
        "Version": {"Index": thing.version},
        "CreatedAt": rfc3339(thing.created_at),
        "UpdatedAt": rfc3339(thing.updated_at),
    }


class Rendered:
    """JSON of objects, made once per version: clients poll whole lists every 200 ms.

    `parts` are the immutable objects a document is made of; the entry holds while they are the very same
    ones. Entries not used between two sweeps go, so that the cache follows what exists.
    """

    def __init__(self, sweep_at: int = 20_000) -> None:
        self._entries: dict[tuple[str, str], tuple[tuple[object, ...], msgspec.Raw]] = {}
        self._previous: dict[tuple[str, str], tuple[tuple[object, ...], msgspec.Raw]] = {}
        self._sweep_at = sweep_at

    def __len__(self) -> int:
        return len(self._entries) + len(self._previous)

    def get(self, form: str, id: str, parts: tuple[object, ...], make: Callable[[], Json]) -> msgspec.Raw:
        key = (form, id)
        entry = self._entries.get(key) or self._previous.get(key)
        if (
            entry is None
            or len(entry[0]) != len(parts)
            or any(a is not b for a, b in zip(entry[0], parts, strict=True))
        ):
            entry = (parts, msgspec.Raw(msgspec.json.encode(make())))
        if len(self._entries) >= self._sweep_at and key not in self._entries:
            self._previous, self._entries = self._entries, {}
        self._entries[key] = entry
        return entry[1]
