"""Whether a ServiceSpec makes sense, and the form it is stored in.

Owns the rules that need only the spec: mode, resources, restart and update policy, placement, ports. Pure.
What depends on other objects (networks, secrets, ports of other services) is checked in services.py. Words:
moby daemon/cluster/convert (unmarked) and swarmkit controlapi/service.go (marked with `swarm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from overlace.manager.control.base import swarm
from overlace.manager.control.container_spec import check_container, check_log_driver
from overlace.manager.control.names import check_dns_name
from overlace.manager.control.words import unsupported
from overlace.manager.orchestrate.jobs import job_size
from overlace.manager.schedule.constraint import parse_constraints
from overlace.model.errors import InvalidArgument
from overlace.model.generic import parse_reservation
from overlace.model.policy import check_policy_labels
from overlace.model.specs import (
    HOST_NETWORKS,
    ConfigReference,
    Doc,
    EndpointSpec,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    Resources,
    RestartPolicy,
    SecretReference,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from overlace.model.traffic import check_traffic_labels

Reference = TypeVar("Reference", SecretReference, ConfigReference)

_MIN_NANO_CPUS = 1_000_000
_MIN_MEMORY = 4 * 1024 * 1024


def normalise(spec: ServiceSpec) -> ServiceSpec:
    """The spec as stored: a mode always, one replica unless said otherwise, networks in the task template.

    What clients say in two ways is stored in one, so that a spec read and sent back unchanged changes no task: the docker
    CLI sends back `Runtime: container` and an endpoint mode it never set, and `docker stack deploy` names the references
    to one secret in another order each time.
    """
    mode = spec.mode
    given = (mode.replicated, mode.global_, mode.replicated_job, mode.global_job)
    if all(one is None for one in given):
        mode = ServiceMode(replicated=ReplicatedService(replicas=1))
    elif mode.replicated is not None and mode.replicated.replicas is None:
        mode = msgspec.structs.replace(mode, replicated=ReplicatedService(replicas=1))
    elif mode.replicated_job is not None:
        at_once, total = job_size(mode.replicated_job)
        mode = msgspec.structs.replace(mode, replicated_job=ReplicatedJob(at_once, total))
    template = spec.task_template
    if spec.networks:
        template = msgspec.structs.replace(template, networks=template.networks or spec.networks)
    if template.runtime == "container":
        template = msgspec.structs.replace(template, runtime="")
    container = template.container_spec
    if container is not None:
        template = msgspec.structs.replace(
            template,
            container_spec=msgspec.structs.replace(
                container,
                secrets=_ordered(container.secrets, lambda r: r.secret_name),
                configs=_ordered(container.configs, lambda r: r.config_name),
            ),
        )
    endpoint = spec.endpoint_spec or EndpointSpec()
    if not endpoint.mode:
        endpoint = msgspec.structs.replace(endpoint, mode="vip")
    return msgspec.structs.replace(
        spec, mode=mode, task_template=template, networks=[], endpoint_spec=endpoint
    )


def _ordered(given: Sequence[Reference], name: Callable[[Reference], str]) -> list[Reference]:
    """References as given, those to one and the same object together and by target."""
    first: dict[str, int] = {}
    for at, one in enumerate(given):
        first.setdefault(name(one), at)
    return sorted(given, key=lambda one: (first[name(one)], one.file.name if one.file is not None else ""))


def _check_policy(spec: ServiceSpec) -> None:
    container = spec.task_template.container_spec
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else []
    check_policy_labels(
        spec.labels,
        container.labels if container is not None else (),
        reachable=any(n.target not in HOST_NETWORKS for n in spec.task_template.networks or spec.networks)
        or any(p.publish_mode != "host" for p in ports),
    )
    check_traffic_labels(
        spec.labels,
        container.labels if container is not None else (),
        mode=spec.endpoint_spec.mode if spec.endpoint_spec is not None else "",
    )


def is_job(spec: ServiceSpec) -> bool:
    return spec.mode.replicated_job is not None or spec.mode.global_job is not None


def check_service(spec: ServiceSpec) -> None:
    """Raises InvalidArgument or Unimplemented for the first thing wrong."""
    _check_mode(spec.mode)
    _check_update(spec.update_config, "UpdateConfig")
    _check_update(spec.rollback_config, "RollbackConfig")
    template = spec.task_template
    _check_runtime(template)
    _check_restart_words(template.restart_policy)
    _check_endpoint_words(spec.endpoint_spec)
    check_dns_name(spec.name)
    _check_resources(template.resources)
    _check_restart(template.restart_policy)
    _check_placement(template.placement)
    check_log_driver(template.log_driver, "TaskTemplate.LogDriver")
    assert template.container_spec is not None
    check_container(template.container_spec, spec.labels)
    _check_policy(spec)
    _check_networks(spec)
    _check_endpoint(spec.endpoint_spec)
    if is_job(spec):
        if spec.update_config is not None:
            raise swarm(InvalidArgument("Jobs may not have an update config"))
        if spec.rollback_config is not None:
            raise swarm(InvalidArgument("Jobs may not have a rollback config"))


def _check_mode(mode: ServiceMode) -> None:
    given = [
        one
        for one in (mode.replicated, mode.global_, mode.replicated_job, mode.global_job)
        if one is not None
    ]
    if len(given) > 1:
        raise InvalidArgument("must specify only one service mode")
    job = mode.replicated_job
    if job is not None and (job.max_concurrent or 0) < 0:
        raise swarm(InvalidArgument("Maximum concurrent jobs must be non-negative"))
    if job is not None and (job.total_completions or 0) < 0:
        raise swarm(InvalidArgument("Total completed jobs must be non-negative"))
    if mode.replicated is not None and (mode.replicated.replicas or 0) < 0:
        raise InvalidArgument(f"invalid Mode.Replicated.Replicas: {mode.replicated.replicas} is negative")


def _check_runtime(template: TaskSpec) -> None:
    if template.runtime == "plugin" or template.plugin_spec is not None:
        raise unsupported("TaskTemplate.Runtime plugin", "tasks are containers")
    if template.runtime == "attachment" or template.network_attachment_spec is not None:
        raise unsupported("TaskTemplate.Runtime attachment", "tasks are containers")
    if template.runtime not in ("", "container"):
        raise unsupported(f"TaskTemplate.Runtime {template.runtime}", "tasks are containers")
    if template.container_spec is None:
        raise InvalidArgument("mismatched Runtime and *Spec fields")


def _check_resources(resources: Resources | None) -> None:
    if resources is None:
        return
    for one in (resources.limits, resources.reservations):
        if one is None:
            continue
        if one.nano_cpus != 0 and one.nano_cpus < _MIN_NANO_CPUS:
            given, least = one.nano_cpus / 1e9, _MIN_NANO_CPUS / 1e9
            raise swarm(InvalidArgument(f"invalid cpu value {given:g}: Must be at least {least:g}"))
        if one.memory_bytes != 0 and one.memory_bytes < _MIN_MEMORY:
            raise swarm(InvalidArgument(f"invalid memory value {one.memory_bytes}: Must be at least 4MiB"))
    if resources.limits is not None and resources.limits.pids < 0:
        raise swarm(
            InvalidArgument(f"invalid pids limit {resources.limits.pids}: Must be 0 (no limit) or more")
        )
    swap, swappiness = resources.swap_bytes, resources.memory_swappiness
    if swap is not None:
        if swap < -1:
            raise InvalidArgument(f"invalid SwapBytes {swap}: use bytes, or -1 for all there is")
        if resources.limits is None or not resources.limits.memory_bytes:
            raise InvalidArgument("SwapBytes needs a memory limit: set Limits.MemoryBytes too")
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidArgument(
            f"invalid MemorySwappiness {swappiness}: valid range is 0-100, -1 for the host's"
        )
    if resources.reservations is not None:
        parse_reservation(resources.reservations.generic_resources)


def _check_restart_words(policy: RestartPolicy | None) -> None:
    if policy is not None and policy.condition not in ("", "none", "on-failure", "any"):
        raise InvalidArgument(f'invalid RestartCondition: "{policy.condition}"')


def _check_restart(policy: RestartPolicy | None) -> None:
    if policy is None:
        return
    if (policy.delay or 0) < 0:
        raise swarm(InvalidArgument("TaskSpec: restart-delay cannot be negative"))
    if (policy.window or 0) < 0:
        raise swarm(InvalidArgument("TaskSpec: restart-window cannot be negative"))
    if (policy.max_attempts or 0) < 0:
        raise swarm(InvalidArgument("TaskSpec: restart-max-attempts cannot be negative"))


def _check_placement(placement: Placement | None) -> None:
    if placement is None:
        return
    try:
        parse_constraints(placement.constraints)
    except InvalidArgument as error:
        raise swarm(InvalidArgument(error.message)) from None
    if placement.max_replicas < 0:
        raise InvalidArgument(f"invalid Placement.MaxReplicas: {placement.max_replicas} is negative")
    for preference in placement.preferences:
        over = preference.spread.spread_descriptor if preference.spread is not None else ""
        if not over.lower().startswith(("node.labels.", "engine.labels.")) or over.endswith("."):
            raise InvalidArgument(
                f'invalid placement preference "spread={over}":'
                " tasks spread over node.labels.X or engine.labels.X"
            )


def _check_update(config: UpdateConfig | None, where: str) -> None:
    if config is None:
        return
    if config.failure_action not in ("", "pause", "continue", "rollback"):
        raise InvalidArgument(f"unrecognized update failure action {config.failure_action}")
    if config.order not in ("", "stop-first", "start-first"):
        raise InvalidArgument(f"unrecognized update order {config.order}")
    if config.parallelism < 0:
        raise InvalidArgument(f"invalid {where}.Parallelism: {config.parallelism} is negative")
    if config.delay < 0:
        raise swarm(InvalidArgument("TaskSpec: update-delay cannot be negative"))
    if (config.monitor or 0) < 0:
        raise swarm(InvalidArgument("TaskSpec: update-monitor cannot be negative"))
    if not 0 <= config.max_failure_ratio <= 1:
        raise swarm(
            InvalidArgument("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
        )


def _check_networks(spec: ServiceSpec) -> None:
    template = spec.task_template
    for network in template.networks:
        if not network.target:
            raise InvalidArgument("Networks: an entry has no Target; name a network")
        if network.driver_opts:
            raise unsupported(f"DriverOpts for network {network.target}", "leave them out")
        if network.target in HOST_NETWORKS:
            _check_host_network(spec, network)


def _check_host_network(spec: ServiceSpec, network: NetworkAttachmentConfig) -> None:
    """What a network of one host cannot do. moby runconfig/hostconfig.go, daemon/network."""
    name, template = network.target, spec.task_template
    if len(template.networks) > 1:
        raise InvalidArgument(
            f"conflicting options: network {name} is each host's own and cannot be used together with another network"
        )
    if network.aliases:
        raise InvalidArgument(
            f"network-scoped aliases are only supported for overlay networks, not for {name}"
        )
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else []
    if ports and name != "bridge":
        why = "its programs have the host's own ports" if name == "host" else "it has no network"
        raise InvalidArgument(
            f"conflicting options: port publishing and network {name}: a task on it publishes nothing, {why}"
        )
    container = template.container_spec
    for key in container.sysctls if container is not None and name == "host" else ():
        if key.startswith("net."):
            raise InvalidArgument(f"sysctl '{key}' is not allowed in the host network namespace")


def _check_endpoint_words(endpoint: EndpointSpec | None) -> None:
    if endpoint is None:
        return
    if endpoint.mode not in ("", "vip", "dnsrr"):
        raise InvalidArgument(f'invalid EndpointSpec.Mode: "{endpoint.mode}"; use vip or dnsrr')
    for port in endpoint.ports:
        if port.host_ip:
            raise InvalidArgument(
                f"EndpointSpec.Ports HostIP {port.host_ip} of port {_shown(port)}: a service's port is published at "
                "every address of its hosts; leave HostIP out"
            )
        if port.protocol not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(
                f'invalid protocol "{port.protocol}" of port {_shown(port)}; use tcp, udp or sctp'
            )
        if port.protocol == "sctp" and port.published_port != port.target_port:
            raise unsupported(
                f"port {_shown(port)}: SCTP on another port than the container's",
                f"its checksum covers the ports; publish {port.target_port}:{port.target_port}/sctp",
            )
        if port.publish_mode not in ("ingress", "host"):
            raise InvalidArgument(
                f'invalid PublishMode "{port.publish_mode}" of port {_shown(port)}; use ingress or host'
            )
        if not 1 <= port.target_port <= 65535:
            raise InvalidArgument(f"invalid TargetPort {port.target_port}: a port is between 1 and 65535")
        if not 0 <= port.published_port <= 65535:
            raise InvalidArgument(
                f"invalid PublishedPort {port.published_port}: a port is between 1 and 65535"
            )


def _shown(port: PortConfig) -> str:
    return f"{port.published_port}:{port.target_port}"


def _check_endpoint(endpoint: EndpointSpec | None) -> None:
    if endpoint is None:
        return
    seen: set[tuple[int, str]] = set()
    for port in endpoint.ports:
        if endpoint.mode == "dnsrr" and port.publish_mode == "ingress":
            raise swarm(
                InvalidArgument(
                    "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"
                )
            )
        if not port.published_port:
            continue
        key = port.published_port, port.protocol
        if key in seen:
            raise swarm(InvalidArgument("EndpointSpec: duplicate published ports provided"))
        seen.add(key)


def may_change_tasks(old: ServiceSpec, new: ServiceSpec) -> bool:
    """Whether tasks made from `old` may differ from those `new` asks for: in their template or their ports (the
    orchestrator judges task by task). Replicas, labels and update policy change without touching one.
    """
    return not (
        _same_meaning(old.task_template, new.task_template)
        and _same_meaning(old.endpoint_spec, new.endpoint_spec)
    )


def _same_meaning(a: Doc | None, b: Doc | None) -> bool:
    """Equal but for documents that say nothing: clients send back `Resources: {}` for what they read as absent."""
    return a == b or _said(msgspec.to_builtins(a)) == _said(msgspec.to_builtins(b))


def _said(value: Any) -> Any:
    """A document without its empty members, None when nothing is left."""
    if isinstance(value, dict):
        return {key: said for key, member in value.items() if (said := _said(member)) is not None} or None
    if isinstance(value, list):
        return [_said(member) for member in value] or None
    return value
