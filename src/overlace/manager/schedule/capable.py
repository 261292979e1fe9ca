"""Which of the capabilities that not every host's network has a service needs, before it has tasks.

Owns reading that from its spec and its networks (pure). Names and sentences are model/capabilities.py's.
"""

from __future__ import annotations

from collections.abc import Iterable

from overlace.manager.schedule.filters import fits_by_nature
from overlace.model.capabilities import explain_nowhere, lacking, needed
from overlace.model.objects import Network, Node
from overlace.model.specs import ServiceSpec, TaskSpec
from overlace.store.base import View


def capabilities_of(view: View, spec: ServiceSpec, template: TaskSpec) -> tuple[str, ...]:
    """`template`: its tasks' spec, networks by id."""
    networks = [n for a in template.networks if (n := view.get(Network, a.target)) is not None]
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else ()
    return needed(
        spec.labels,
        overlays=bool(networks) or any(p.publish_mode == "ingress" for p in ports),
        ipv6=any(n.spec.enable_ipv6 for n in networks),
    )


def is_capable(node: Node, template: TaskSpec, capabilities: Iterable[str]) -> bool:
    """Whether a node can run such tasks, whatever runs on it now: constraints, platform, network."""
    about = node.description
    return about is not None and not lacking(about, capabilities) and fits_by_nature(template, node)


def explain_incapable(view: View, spec: ServiceSpec) -> str:
    """Why every node that could run it otherwise cannot; empty when one can, or none could anyhow."""
    asked = capabilities_of(view, spec, spec.task_template)
    if not asked:
        return ""
    able = (n for n in view.all(Node) if not n.removed and fits_by_nature(spec.task_template, n))
    return explain_nowhere(able, asked)
