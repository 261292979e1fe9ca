"""A service's spec in the words of a compose file, flat: {"deploy.replicas": 4, "environment.COLOR": "blue", …}.

Owns which word each field has and which defaults go without saying, so that two specs which mean the same have the same
words. Every field a deploy sets has one, but those the swarm derives: platforms (of the image) and ForceUpdate.
Source of the defaults: swarmkit api/defaults/service.go. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from overlace.model.specs import (
    ContainerSpec,
    EndpointSpec,
    FileTarget,
    Limits,
    Mount,
    Reservations,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)

Words = dict[str, Any]
_SECOND = 1_000_000_000


def service_words(spec: ServiceSpec, networks: Mapping[str, str]) -> Words:
    """`networks`: names by id; a target that is no known id is taken for a name."""
    found: Words = {}
    task = spec.task_template
    for prefix, part in (
        ("", _container(task.container_spec or ContainerSpec())),
        ("", _task(task)),
        ("deploy.", _mode(spec.mode)),
        ("deploy.", _mapped("labels", spec.labels)),
        ("", _endpoint(spec.endpoint_spec or EndpointSpec())),
    ):
        found |= {f"{prefix}{key}": value for key, value in part if value not in (None, "", [], {})}
    if spec.mode.replicated_job is None and spec.mode.global_job is None:
        for key, config in (("update_config", spec.update_config), ("rollback_config", spec.rollback_config)):
            found |= dict(_update(f"deploy.{key}", config))
    for attachment in task.networks or spec.networks:
        name = networks.get(attachment.target, attachment.target)
        found[f"networks.{name}"] = list(attachment.aliases)
        found |= dict(_mapped(f"networks.{name}.driver_opts", attachment.driver_opts))
    return found


def _mapped(key: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        yield f"{key}.{name}", value or '""'


def duration(nanoseconds: int) -> str:
    """As compose files have it: 1m30s."""
    if nanoseconds == 0:
        return "0s"
    sign, rest, found = ("-" if nanoseconds < 0 else ""), abs(nanoseconds), ""
    for size, unit in (
        (3600 * _SECOND, "h"),
        (60 * _SECOND, "m"),
        (_SECOND, "s"),
        (10**6, "ms"),
        (10**3, "us"),
        (1, "ns"),
    ):
        count, rest = divmod(rest, size)
        found += f"{count}{unit}" if count else ""
    return sign + found


def size(count: int) -> str:
    for power, unit in ((1024**3, "g"), (1024**2, "m"), (1024, "k")):
        if count and count % power == 0:
            return f"{count // power}{unit}"
    return str(count)


def _given(value: int | None, default: int = 0) -> str | None:
    """A duration that is not the default."""
    return None if value is None or value == default else duration(value)


def _container(spec: ContainerSpec) -> Iterator[tuple[str, Any]]:
    yield "image", spec.image
    yield "entrypoint", spec.command
    yield "command", spec.args
    yield "hostname", spec.hostname
    yield "working_dir", spec.dir
    yield "user", spec.user
    yield "group_add", spec.groups
    yield "init", spec.init
    yield "stop_signal", spec.stop_signal
    yield "tty", spec.tty or None
    yield "stdin_open", spec.open_stdin or None
    yield "read_only", spec.read_only or None
    yield "stop_grace_period", _given(spec.stop_grace_period, 10 * _SECOND)
    yield "isolation", spec.isolation if spec.isolation != "default" else ""
    yield "oom_score_adj", spec.oom_score_adj or None
    yield "extra_hosts", spec.hosts
    yield "cap_add", spec.capability_add
    yield "cap_drop", spec.capability_drop
    for entry in spec.env:
        name, equals, value = entry.partition("=")
        yield f"environment.{name}", (value or '""') if equals else "(unset)"
    yield from _mapped("labels", spec.labels)
    yield from _mapped("sysctls", spec.sysctls)
    for ulimit in spec.ulimits:
        yield f"ulimits.{ulimit.name}", f"{ulimit.soft}:{ulimit.hard}"
    for key, value in _leaves(spec.privileges or {}):
        yield f"privileges.{key}", value
    if spec.dns_config is not None:
        yield "dns", spec.dns_config.nameservers
        yield "dns_search", spec.dns_config.search
        yield "dns_opt", spec.dns_config.options
    check = spec.healthcheck
    if check is not None:
        yield "healthcheck.test", check.test
        yield "healthcheck.interval", _given(check.interval)
        yield "healthcheck.timeout", _given(check.timeout)
        yield "healthcheck.start_period", _given(check.start_period)
        yield "healthcheck.start_interval", _given(check.start_interval)
        yield "healthcheck.retries", check.retries or None
    for mount in spec.mounts:
        yield from _mount(f"volumes.{mount.target}", mount)
    for secret in spec.secrets:
        yield from _file("secrets", secret.secret_name, secret.secret_id, secret.file)
    for config in spec.configs:
        yield from _file("configs", config.config_name, config.config_id, config.file)


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The members that say something."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value not in (None, "", [], False, 0):
            yield f"{prefix}{key}", value


def _mount(key: str, mount: Mount) -> Iterator[tuple[str, Any]]:
    yield key, f"{mount.type} {mount.source}".strip()
    yield f"{key}.read_only", mount.read_only or None
    yield f"{key}.consistency", mount.consistency if mount.consistency != "default" else ""
    for section in ("bind", "volume", "tmpfs", "image", "cluster"):
        options = getattr(mount, f"{section}_options")
        if options is not None:
            plain = options if isinstance(options, dict) else msgspec.to_builtins(options)
            for name, value in _leaves(plain):
                yield f"{key}.{section}.{name}", value


def _file(kind: str, name: str, id: str, target: FileTarget | None) -> Iterator[tuple[str, Any]]:
    if target is None:
        yield f"{kind}.{name}", f"for the runtime ({id})"
        return
    key = f"{kind}.{target.name}"
    yield key, name
    yield f"{key}.id", id
    yield f"{key}.uid", target.uid if target.uid != "0" else ""
    yield f"{key}.gid", target.gid if target.gid != "0" else ""
    yield f"{key}.mode", f"{target.mode:#o}" if target.mode != 0o444 else ""


def _task(spec: TaskSpec) -> Iterator[tuple[str, Any]]:
    resources = spec.resources
    limits = (resources.limits if resources else None) or Limits()
    reservations = (resources.reservations if resources else None) or Reservations()
    for name, part in (("limits", limits), ("reservations", reservations)):
        key = f"deploy.resources.{name}"
        yield f"{key}.cpus", f"{part.nano_cpus / 10**9:g}" if part.nano_cpus else None
        yield f"{key}.memory", size(part.memory_bytes) if part.memory_bytes else None
    yield "deploy.resources.limits.pids", limits.pids or None
    yield "deploy.resources.reservations.generic_resources", reservations.generic_resources
    if resources is not None:
        yield "deploy.resources.swap", None if resources.swap_bytes is None else size(resources.swap_bytes)
        yield "mem_swappiness", resources.memory_swappiness
    policy = spec.restart_policy or RestartPolicy()
    key = "deploy.restart_policy"
    yield f"{key}.condition", policy.condition if policy.condition not in ("", "any") else None
    yield f"{key}.delay", _given(policy.delay, 5 * _SECOND)
    yield f"{key}.max_attempts", policy.max_attempts or None
    yield f"{key}.window", _given(policy.window)
    if spec.placement is not None:
        yield "deploy.placement.constraints", spec.placement.constraints
        spread = [
            one.spread.spread_descriptor for one in spec.placement.preferences if one.spread is not None
        ]
        yield "deploy.placement.preferences", [f"spread={over}" for over in spread]
        yield "deploy.placement.max_replicas_per_node", spec.placement.max_replicas or None
    if spec.log_driver is not None:
        yield "logging.driver", spec.log_driver.name
        yield from _mapped("logging.options", spec.log_driver.options)


def mode_word(mode: ServiceMode) -> str:
    if mode.global_ is not None:
        return "global"
    if mode.replicated_job is not None:
        return "replicated-job"
    return "global-job" if mode.global_job is not None else "replicated"


def _mode(mode: ServiceMode) -> Iterator[tuple[str, Any]]:
    yield "mode", mode_word(mode)
    job = mode.replicated_job
    if job is not None:
        concurrent = 1 if job.max_concurrent is None else job.max_concurrent
        total = concurrent if job.total_completions is None else job.total_completions
        yield "replicas", total
        yield "max_concurrent", concurrent if concurrent != total else None
    elif mode_word(mode) == "replicated":
        replicas = mode.replicated.replicas if mode.replicated is not None else None
        yield "replicas", 1 if replicas is None else replicas


def _update(key: str, config: UpdateConfig | None) -> Iterator[tuple[str, Any]]:
    config = config or UpdateConfig(parallelism=1)
    yield f"{key}.parallelism", config.parallelism
    yield f"{key}.delay", duration(config.delay)
    yield f"{key}.failure_action", config.failure_action or "pause"
    yield f"{key}.monitor", duration(config.monitor or 5 * _SECOND)
    yield f"{key}.max_failure_ratio", float(config.max_failure_ratio)
    yield f"{key}.order", config.order or "stop-first"


def _endpoint(spec: EndpointSpec) -> Iterator[tuple[str, Any]]:
    yield "deploy.endpoint_mode", spec.mode if spec.mode != "vip" else ""
    seen: dict[str, int] = {}
    for port in spec.ports:
        key = f"ports.{port.published_port or ''}:{port.target_port}/{port.protocol}".replace(".:", ".")
        seen[key] = seen.get(key, 0) + 1
        key = key if seen[key] == 1 else f"{key}#{seen[key]}"
        yield key, f"{port.publish_mode or 'ingress'} {port.name}".strip()
