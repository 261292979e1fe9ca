"""What one host's HNS is wanted to hold: the planner's documents in its shape, kept up to date by what changed. Pure.

Owns which documents that is. Must not decide what there should be, nor call HNS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from overlace.network.hns.documents import (
    Document,
    Guid,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.windows.shape import Shape, shape, way_out_first


class Wanted:
    """`documents` follow `form`."""

    def __init__(self) -> None:
        self.documents: dict[Guid, Document] = {}

    def form(
        self, made: Mapping[Guid, Document], to: Shape, ids: Iterable[Guid] | None, held: Collection[Guid]
    ) -> set[Guid]:
        """Follow the planner's documents `made` for `ids` (None: all of them); returns whose form may differ now. `held`:
        namespaces of containers that an engine has."""
        looked = {*self.documents, *made} if ids is None else set(ids)
        for guid in looked:
            d = made.get(guid)
            network = made.get(getattr(d, "host_compute_network", ""))
            kind = network.type if isinstance(network, HostComputeNetwork) else ""
            if isinstance(d, HostComputeNamespace):
                d = way_out_first(d, made)
            formed = shape(d, to, kind, held=guid in held) if d is not None else None
            if formed is not None:
                self.documents[guid] = formed
            else:
                self.documents.pop(guid, None)
        return looked
