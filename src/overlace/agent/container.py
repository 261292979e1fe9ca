"""From a task to the container that runs it: Docker's names, labels, templates and defaults.

Pure: takes everything it needs, returns a ContainerConfig. Must not touch the runtime, disk or network.
Sources: moby daemon/cluster/executor/container/container.go (names and labels), swarmkit template/ (placeholders).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from overlace.model import labels
from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.logoptions import parse_log_options
from overlace.model.objects import Config, Secret, Task
from overlace.model.specs import ContainerSpec, Mount
from overlace.model.template import Context, expand
from overlace.runtime import base

SECRETS_DIR = "/run/secrets"


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
    resources = task.spec.resources
    limits = resources.limits if resources else None
    health = spec.healthcheck
    driver = task.spec.log_driver
    log_size, log_files = parse_log_options(driver.options) if driver else (0, 0)
    return base.ContainerConfig(
        id=container_id(task.id),
        name=task.name,
        image=spec.image,
        netns=netns,
        entrypoint=tuple(spec.command) or None,
        args=tuple(spec.args) or None,
        env=tuple(expand(e, context) for e in spec.env),
        workdir=spec.dir or None,
        user=spec.user or None,
        groups=tuple(spec.groups),
        hostname=expand(spec.hostname, context) or container_id(task.id)[:12],
        labels=_labels(task, spec, node_id),
        mounts=tuple(_mount(m, context) for m in spec.mounts),
        files=_files(spec, secrets, configs),
        resolv_conf=_resolv_conf(spec, resolv_conf),
        hosts=_hosts(spec) + network_hosts,
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        read_only=spec.read_only,
        init=bool(spec.init),
        stop_signal=spec.stop_signal or None,
        stop_grace=spec.stop_grace_period if spec.stop_grace_period is not None else 10_000_000_000,
        healthcheck=None if health is None else _healthcheck(health),
        nano_cpus=limits.nano_cpus if limits else 0,
        memory=limits.memory_bytes if limits else 0,
        pids=limits.pids if limits else 0,
        cap_add=tuple(spec.capability_add),
        cap_drop=tuple(spec.capability_drop),
        sysctls=dict(spec.sysctls),
        ulimits=tuple(base.Ulimit(u.name, u.soft, u.hard) for u in spec.ulimits),
        oom_score_adj=spec.oom_score_adj,
        no_new_privileges=bool((spec.privileges or {}).get("NoNewPrivileges")),
        log_max_size=log_size,
        log_max_files=log_files,
    )


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


def _mount(m: Mount, context: Context) -> base.Mount:
    if m.type not in ("bind", "volume", "tmpfs"):
        raise InvalidArgument(
            f"mount {m.target}: type {m.type!r} cannot be mounted here; use bind, volume or tmpfs"
        )
    bind, volume, tmpfs = m.bind_options, m.volume_options, m.tmpfs_options
    return base.Mount(
        type=m.type,  # type: ignore[arg-type]  # checked above
        target=expand(m.target, context),
        source=expand(m.source, context),
        read_only=m.read_only,
        propagation=(bind.propagation if bind and bind.propagation else "rprivate"),
        tmpfs_size=tmpfs.size_bytes if tmpfs else 0,
        tmpfs_mode=(tmpfs.mode if tmpfs and tmpfs.mode else 0o1777),
        no_copy=bool(volume and volume.no_copy),
        create_source=bool(bind and bind.create_mountpoint),
    )


def _files(
    spec: ContainerSpec, secrets: Mapping[str, Secret], configs: Mapping[str, Config]
) -> tuple[base.FileMount, ...]:
    files = []
    refs: list[tuple[str, str, str, Any, Mapping[str, Any], bool]] = [
        ("secret", s.secret_id, s.secret_name, s.file, secrets, True) for s in spec.secrets
    ]
    refs += [("config", c.config_id, c.config_name, c.file, configs, False) for c in spec.configs if c.file]
    for kind, id, name, file, there, secret in refs:
        found = there.get(id)
        if found is None:
            raise Unavailable(f"{kind} {name or id} has not arrived on this node yet")
        target = (file.name if file else "") or name
        if not target.startswith("/"):
            target = f"{SECRETS_DIR}/{target}" if secret else f"/{target}"
        files.append(
            base.FileMount(
                target=target,
                data=found.spec.data,
                uid=_number(file.uid if file else "0", kind, name),
                gid=_number(file.gid if file else "0", kind, name),
                mode=file.mode if file else 0o444,
                secret=secret,
            )
        )
    return tuple(files)


def _number(text: str, kind: str, name: str) -> int:
    try:
        return int(text or "0")
    except ValueError:
        raise InvalidArgument(
            f"{kind} {name}: owner {text!r} is not a number; give a numeric UID and GID"
        ) from None


def _hosts(spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
    """`IP name [alias…]` lines -> (name, address) pairs."""
    pairs = []
    for line in spec.hosts:
        address, *names = line.split()
        pairs += [(name, address) for name in names]
    return tuple(pairs)


def _resolv_conf(spec: ContainerSpec, given: str) -> str:
    """The network's resolv.conf with the service's own search domains and options on top.

    A service's own nameservers replace only what the embedded resolver forwards to in Docker; names of services go on
    working, so they are listed after it.
    """
    dns = spec.dns_config
    if dns is None or not (dns.nameservers or dns.search or dns.options):
        return given
    lines = [ln for ln in given.splitlines() if not (dns.search and ln.startswith("search"))]
    if dns.options:
        lines = [ln for ln in lines if not ln.startswith("options")]
        lines.append("options " + " ".join(dns.options))
    if dns.search:
        lines.append("search " + " ".join(dns.search))
    lines += [f"nameserver {n}" for n in dns.nameservers]
    return "\n".join(lines) + "\n"


def _healthcheck(h: Any) -> base.Healthcheck:
    d = base.Healthcheck()
    return base.Healthcheck(
        test=tuple(h.test),
        interval=h.interval or d.interval,
        timeout=h.timeout or d.timeout,
        start_period=h.start_period,
        start_interval=h.start_interval or d.start_interval,
        retries=h.retries or d.retries,
    )
