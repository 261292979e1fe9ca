"""From a task to the container that runs it: Docker's names, labels, templates and defaults.

Pure: takes everything it needs, returns a ContainerConfig. Must not touch the runtime, disk or network.
Sources: moby daemon/cluster/executor/container/container.go (names and labels), swarmkit template/ (placeholders).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from overlace.agent.files import TaskFiles
from overlace.model import labels
from overlace.model.errors import InvalidArgument
from overlace.model.generic import environment
from overlace.model.logoptions import log_choice
from overlace.model.objects import Config, Secret, Task
from overlace.model.specs import (
    BindOptions,
    ContainerSpec,
    Healthcheck,
    Limits,
    Mount,
    Resources,
    VolumeOptions,
)
from overlace.model.template import Context, expand_container
from overlace.runtime import base


def container_id(task_id: str) -> str:
    """64 hex digits that follow from the task's id, so that a crash between deciding and creating leaves no orphan."""
    return hashlib.sha256(f"task {task_id}".encode()).hexdigest()


def plan_container(
    task: Task,
    context: Context,
    node_id: str,
    secrets: Mapping[str, Secret],
    configs: Mapping[str, Config],
    netns: str,
    resolv_conf: str,
    network_hosts: tuple[tuple[str, str], ...] = (),
) -> base.ContainerConfig:
    """The container of `task` on this node.

    Raises InvalidArgument for a template that does not expand or a task without container spec, Unavailable when a secret
    or config it needs has not arrived.
    """
    spec = task.spec.container_spec
    if spec is None:
        raise InvalidArgument("task has no ContainerSpec: only container tasks run here")
    spec = expand_container(spec, context)
    on_host = netns == "host"
    env = (*spec.env, *environment(task.generic))
    resources = task.spec.resources or Resources()
    limits = resources.limits or Limits()
    health = spec.healthcheck
    logs = log_choice(task.spec.log_driver)
    privileges = spec.privileges or {}
    swappiness = resources.memory_swappiness
    return base.ContainerConfig(
        id=container_id(task.id),
        name=task.name,
        image=spec.image,
        netns=netns,
        entrypoint=tuple(spec.command) or None,
        args=tuple(spec.args) or None,
        env=env,
        workdir=spec.dir or None,
        user=spec.user or None,
        groups=tuple(spec.groups),
        hostname=spec.hostname or (context.node_hostname if on_host else container_id(task.id)[:12]),
        labels=_labels(task, spec, node_id),
        mounts=tuple(mount_of(m) for m in spec.mounts),
        files=TaskFiles(spec, context, env, secrets, configs).plan(),
        resolv_conf=_resolv_conf(spec, resolv_conf),
        hosts=_hosts(spec) + network_hosts,
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        read_only=spec.read_only,
        init=bool(spec.init),
        stop_signal=spec.stop_signal or None,
        stop_grace=spec.stop_grace_period if spec.stop_grace_period is not None else 10_000_000_000,
        healthcheck=None if health is None else healthcheck_of(health),
        nano_cpus=limits.nano_cpus,
        memory=limits.memory_bytes,
        pids=limits.pids,
        cap_add=tuple(spec.capability_add),
        cap_drop=tuple(spec.capability_drop),
        sysctls=dict(spec.sysctls),
        ulimits=tuple(base.Ulimit(u.name, u.soft, u.hard) for u in spec.ulimits),
        oom_score_adj=spec.oom_score_adj,
        no_new_privileges=bool(privileges.get("NoNewPrivileges")),
        seccomp=_seccomp(privileges),
        swap=resources.swap_bytes,
        swappiness=-1 if swappiness is None else swappiness,
        isolation=_isolation(spec),
        log_driver=logs.driver,
        log_max_size=logs.max_size,
        log_max_files=logs.max_files,
    )


def _isolation(spec: ContainerSpec) -> str:
    asked = spec.isolation.lower()
    return "" if asked == "default" else asked


def _labels(task: Task, spec: ContainerSpec, node_id: str) -> dict[str, str]:
    return {
        **spec.labels,
        labels.TASK: "",
        labels.TASK_ID: task.id,
        labels.TASK_NAME: task.name,
        labels.NODE_ID: node_id,
        labels.SERVICE_ID: task.service_id,
        labels.SERVICE_NAME: task.service_name,
    }


def mount_of(m: Mount) -> base.Mount:
    """As the runtime has it. Raises InvalidArgument for a type that no runtime mounts."""
    if m.type not in ("bind", "volume", "tmpfs"):
        raise InvalidArgument(
            f"mount {m.target}: type {m.type!r} cannot be mounted here; use bind, volume or tmpfs"
        )
    bind, volume, tmpfs = (
        m.bind_options or BindOptions(),
        m.volume_options or VolumeOptions(),
        m.tmpfs_options,
    )
    return base.Mount(
        type=m.type,  # type: ignore[arg-type]  # checked above
        target=m.target,
        source=m.source,
        read_only=m.read_only,
        propagation=bind.propagation or "rprivate",
        tmpfs_size=tmpfs.size_bytes if tmpfs else 0,
        tmpfs_mode=(tmpfs.mode if tmpfs and tmpfs.mode else 0o1777),
        tmpfs_exec=["exec"] in tmpfs.options if tmpfs else False,
        no_copy=volume.no_copy,
        create_source=bind.create_mountpoint,
        recursive=not bind.non_recursive,
        recursive_read_only="must"
        if bind.read_only_force_recursive
        else "no"
        if bind.read_only_non_recursive
        else "try",
        subpath=volume.subpath,
        volume_labels=dict(volume.labels),
        volume_options=dict(volume.driver_config.options) if volume.driver_config else {},
    )


def _seccomp(privileges: Mapping[str, Any]) -> str:
    asked = privileges.get("Seccomp") or {}
    match asked.get("Mode"):
        case "unconfined":
            return "unconfined"
        case "custom":
            return base64.b64decode(asked["Profile"]).decode()
        case _:
            return ""


def _hosts(spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
    """`IP name [alias…]` lines -> (name, address) pairs."""
    pairs = []
    for line in spec.hosts:
        address, *names = line.split()
        pairs += [(name, address) for name in names]
    return tuple(pairs)


def _resolv_conf(spec: ContainerSpec, given: str) -> str:
    """The network's resolv.conf with the service's own search domains and options. Its own nameservers are asked by
    the host's resolver: names of services go on working."""
    dns = spec.dns_config
    if dns is None or not (dns.search or dns.options):
        return given
    lines = given.splitlines()
    for word, own in (("options", dns.options), ("search", dns.search)):
        if own:
            lines = [line for line in lines if not line.startswith(word)]
            lines.append(f"{word} {' '.join(own)}")
    return "\n".join(lines) + "\n"


def healthcheck_of(h: Healthcheck) -> base.Healthcheck:
    """With Docker's defaults where nothing is said."""
    d = base.Healthcheck()
    return base.Healthcheck(
        test=tuple(h.test),
        interval=h.interval or d.interval,
        timeout=h.timeout or d.timeout,
        start_period=h.start_period,
        start_interval=h.start_interval or d.start_interval,
        retries=h.retries or d.retries,
    )
