"""Which of the capabilities that not every host's network has a service needs, before it has tasks.

Owns reading that from its spec and its networks (pure). Names and sentences are model/capabilities.py's.
"""

from __future__ import annotations

from collections.abc import Iterable

from overlace.manager.schedule.filters import fits_by_nature
from overlace.model.capabilities import explain_nowhere, explain_without_six, lacking, needed
from overlace.model.objects import Network, Node
from overlace.model.specs import ServiceSpec, TaskSpec
from overlace.store.base import View


def capabilities_of(view: View, spec: ServiceSpec, template: TaskSpec) -> tuple[str, ...]:
    """`template`: its tasks' spec, networks by id."""
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else ()
    published = any(p.publish_mode == "ingress" for p in ports)
    return needed(spec.labels, overlays=published or bool(_networks(view, template)))


def _networks(view: View, template: TaskSpec) -> list[Network]:
    return [n for a in template.networks if (n := view.get(Network, a.target)) is not None]


def is_capable(node: Node, template: TaskSpec, capabilities: Iterable[str]) -> bool:
    """Whether a node can run such tasks, whatever runs on it now: constraints, platform, network."""
    about = node.description
    return about is not None and not lacking(about, capabilities) and fits_by_nature(template, node)


def explain_incapable(view: View, spec: ServiceSpec) -> str:
    """Why every node that could run it otherwise cannot; empty when one can, or none could anyhow."""
    asked = capabilities_of(view, spec, spec.task_template)
    if not asked:
        return ""
    return explain_nowhere(_able(view, spec), asked)


def _able(view: View, spec: ServiceSpec) -> list[Node]:
    return [n for n in view.all(Node) if not n.removed and fits_by_nature(spec.task_template, n)]


def warn_incapable(view: View, spec: ServiceSpec) -> list[str]:
    """What a service will be without on every node that could run it."""
    if not any(n.spec.enable_ipv6 for n in _networks(view, spec.task_template)):
        return []
    why = explain_without_six(_able(view, spec))
    return [f"service {spec.name}: {why}"] if why else []
