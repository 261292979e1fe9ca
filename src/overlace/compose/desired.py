"""A project as the swarm objects it stands for, with the names and labels `docker stack deploy` gives them.

Owns names (STACK_key), labels and the places where a service refers to networks, volumes, secrets and configs.
Source: docker/cli cli/compose/convert. Pure; the data of secret files is asked of a callable.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from overlace.compose.problems import Problems
from overlace.compose.project import FileDef, FileUse, NetworkDef, NetworkUse, Project, ServiceDef, VolumeUse
from overlace.compose.references import DEFAULT_NETWORK
from overlace.compose.versions import NAMESPACE, Wish
from overlace.model.specs import (
    ConfigReference,
    ConfigSpec,
    Doc,
    Driver,
    FileTarget,
    Ipam,
    Mount,
    NetworkAttachmentConfig,
    NetworkSpec,
    SecretReference,
    SecretSpec,
    ServiceSpec,
    VolumeOptions,
)

IMAGE = "com.docker.stack.image"
_PREDEFINED = ("default", "bridge", "host", "none")
MAX_DATA = {"secret": 500 * 1024, "config": 1000 * 1024}  # bytes, exclusive

FileRef = tuple[
    str, str
]  # (id, name) of the version that serves a secret or config; id "" when yet to be made


def scoped(stack: str, key: str) -> str:
    return f"{stack}_{key}"


def _labelled(stack: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {**labels, NAMESPACE: stack}


# -- networks --


def network_name(stack: str, key: str, networks: Mapping[str, NetworkDef]) -> str:
    definition = networks.get(key)
    return definition.name if definition is not None and definition.name else scoped(stack, key)


def used_networks(project: Project) -> dict[str, NetworkDef]:
    """Those some service is on, as the docker CLI has it: others are not made."""
    used = {key for service in project.services.values() for key in service.networks or (DEFAULT_NETWORK,)}
    return {key: project.networks.get(key, NetworkDef()) for key in sorted(used)}


def network_spec(stack: str, key: str, definition: NetworkDef) -> NetworkSpec:
    return NetworkSpec(
        name=definition.name or scoped(stack, key),
        driver=definition.driver or "overlay",
        labels=_labelled(stack, definition.labels),
        options=dict(definition.driver_opts),
        internal=definition.internal,
        attachable=definition.attachable,
        enable_ipv6=definition.enable_ipv6,
        ipam=Ipam(definition.ipam_driver or "default", None, list(definition.ipam)),
    )


# -- secrets and configs --


def file_wishes(
    stack: str, project: Project, data_of: Callable[[str, str, FileDef], bytes], problems: Problems
) -> list[Wish]:
    """What the stack's own secrets and configs should be. `data_of(kind, key, definition)` reads the content; it raises
    OSError or ValueError."""
    found = []
    for kind, definitions in (("secret", project.secrets), ("config", project.configs)):
        for key, definition in definitions.items():
            if definition.external:
                continue
            path = f"{kind}s.{key}"
            try:
                data = b"" if definition.driver else data_of(kind, key, definition)
            except (OSError, ValueError) as error:
                problems.error(definition.mark, path, str(error))
                continue
            if not definition.driver and not 0 < len(data) < MAX_DATA[kind]:
                problems.error(
                    definition.mark,
                    path,
                    f"its data is {len(data)} bytes; more than 0 and less than {MAX_DATA[kind]}",
                )
                continue
            found.append(_wish(stack, kind, key, definition, data))
    return found


def _wish(stack: str, kind: str, key: str, definition: FileDef, data: bytes) -> Wish:
    name, labels = definition.name or scoped(stack, key), _labelled(stack, definition.labels)
    templating = Driver(definition.template_driver) if definition.template_driver else None
    if kind == "config":
        return Wish(kind, key, ConfigSpec(name, labels, data, templating))
    driver = Driver(definition.driver, dict(definition.driver_opts)) if definition.driver else None
    return Wish(kind, key, SecretSpec(name, labels, data, driver, templating), rotates=driver is None)


# -- services --


def service_spec(
    stack: str,
    project: Project,
    service: ServiceDef,
    secrets: Mapping[str, FileRef],
    configs: Mapping[str, FileRef],
) -> ServiceSpec:
    """`secrets`, `configs`: by key, the version each is served by."""
    container = msgspec.structs.replace(
        service.container,
        labels=_labelled(stack, service.container.labels),
        mounts=[_mount(stack, project, use) for use in service.volumes],
        secrets=sorted(_secrets(service.secrets, secrets), key=lambda ref: ref.secret_name),
        configs=sorted(_configs(service, configs), key=lambda ref: ref.config_name),
        privileges=_privileges(service, configs),
    )
    template = msgspec.structs.replace(
        service.task, container_spec=container, networks=_attachments(stack, project, service)
    )
    return msgspec.structs.replace(
        service.service,
        name=scoped(stack, service.name),
        labels={**_labelled(stack, service.service.labels), IMAGE: container.image},
        task_template=template,
        endpoint_spec=service.endpoint,
    )


def _attachments(stack: str, project: Project, service: ServiceDef) -> list[NetworkAttachmentConfig]:
    """By the networks' names, sorted as the docker CLI does; the service's own short name is an alias."""
    found = []
    for key, use in (service.networks or {DEFAULT_NETWORK: NetworkUse()}).items():
        target = network_name(stack, key, project.networks)
        aliases = [*use.aliases] if target in _PREDEFINED else [*use.aliases, service.name]
        found.append(NetworkAttachmentConfig(target, aliases, dict(use.driver_opts)))
    return sorted(found, key=lambda one: one.target)


def _mount(stack: str, project: Project, use: VolumeUse) -> Mount:
    if not use.named:
        return use.mount
    definition = project.volumes[use.mount.source]
    options = use.mount.volume_options or VolumeOptions()
    if not definition.external:
        driver = (
            Driver(definition.driver, dict(definition.driver_opts))
            if definition.driver or definition.driver_opts
            else None
        )
        labels = _labelled(stack, {**definition.labels, **options.labels})
        options = msgspec.structs.replace(options, labels=labels, driver_config=driver)
    source = definition.name or scoped(stack, use.mount.source)
    return msgspec.structs.replace(use.mount, source=source, volume_options=options)


def _secrets(uses: Iterable[FileUse], refs: Mapping[str, FileRef]) -> list[SecretReference]:
    return [SecretReference(*refs[use.source], _target(use)) for use in uses]


def _configs(service: ServiceDef, refs: Mapping[str, FileRef]) -> list[ConfigReference]:
    found = [ConfigReference(*refs[use.source], _target(use)) for use in service.configs]
    if service.credential_config:
        found.append(ConfigReference(*refs[service.credential_config], None, {}))
    return found


def _target(use: FileUse) -> FileTarget:
    return FileTarget(use.target, use.uid, use.gid, use.mode)


def _privileges(service: ServiceDef, configs: Mapping[str, FileRef]) -> dict[str, Any] | None:
    privileges = service.container.privileges
    if privileges is None or not service.credential_config:
        return privileges
    return {**privileges, "CredentialSpec": {"Config": configs[service.credential_config][0]}}


# -- as JSON --


def encode(doc: Doc) -> dict[str, Any]:
    """A spec as a client sends it: what is empty or not given is left out, numbers and true or false never are."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(doc):
        value = getattr(doc, field.name)
        if value is None or (
            isinstance(value, str | bytes | list | dict) and not value and field.name != "runtime"
        ):
            continue
        found[field.encode_name] = _encoded(value)
    return found


def _encoded(value: Any) -> Any:
    if isinstance(value, Doc):
        return encode(value)
    if isinstance(value, list):
        return [_encoded(member) for member in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
