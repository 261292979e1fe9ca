"""Every route of the API, one module per noun."""

from __future__ import annotations

from overlace.api.routes import (
    absent,
    attach,
    containers,
    execs,
    files,
    health,
    images,
    networks,
    nodes,
    openapi,
    services,
    stats,
    swarm,
    system,
    tasks,
    trace,
    usage,
    vfp,
    volumes,
    why,
)

ALL = [
    *system.ROUTES,
    *swarm.ROUTES,
    *nodes.ROUTES,
    *services.ROUTES,
    *stats.ROUTES,
    *tasks.ROUTES,
    *files.ROUTES,
    *networks.ROUTES,
    *containers.ROUTES,
    *attach.ROUTES,
    *execs.ROUTES,
    *images.ROUTES,
    *health.ROUTES,
    *trace.ROUTES,
    *usage.ROUTES,
    *vfp.ROUTES,
    *volumes.ROUTES,
    *why.ROUTES,
    *openapi.ROUTES,
    *absent.ROUTES,
]
