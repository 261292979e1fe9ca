"""A compose project as it was read: services with what they ask of networks, volumes, secrets and configs.

Owns its shape. What needs no stack's name is kept as the Engine API's spec has it (model/specs.py). Must not know
files nor how it was spelt.
"""

from __future__ import annotations

import msgspec

from overlace.compose.problems import Mark
from overlace.model.specs import ContainerSpec, EndpointSpec, IpamConfig, Mount, ServiceSpec, TaskSpec


class NetworkUse(msgspec.Struct, frozen=True):
    """A service's place on a network."""

    aliases: list[str] = []
    driver_opts: dict[str, str] = {}


class FileUse(msgspec.Struct, frozen=True):
    """A secret or config in a service's containers."""

    source: str
    target: str = ""  # "" for the source's name
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


STARTED, HEALTHY, COMPLETED = "service_started", "service_healthy", "service_completed_successfully"
CONDITIONS = (STARTED, HEALTHY, COMPLETED)


class Dependency(msgspec.Struct, frozen=True):
    condition: str = STARTED
    required: bool = True


class VolumeUse(msgspec.Struct, frozen=True):
    """A mount; of a named volume of the project, `mount.source` is its name there."""

    mount: Mount
    named: bool = False


class ServiceDef(msgspec.Struct, frozen=True, kw_only=True):
    """`container`, `task` and `service` hold the parts that need no stack's name."""

    name: str
    mark: Mark
    container: ContainerSpec = ContainerSpec()
    task: TaskSpec = TaskSpec()
    service: ServiceSpec = ServiceSpec()
    endpoint: EndpointSpec = EndpointSpec()
    networks: dict[str, NetworkUse] = {}  # empty: the network "default"
    volumes: list[VolumeUse] = []
    secrets: list[FileUse] = []
    configs: list[FileUse] = []
    depends_on: dict[str, Dependency] = {}
    credential_config: str = ""  # the config a credential_spec names


class NetworkDef(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""  # "" for STACK_KEY
    external: bool = False
    driver: str = ""
    driver_opts: dict[str, str] = {}
    labels: dict[str, str] = {}
    internal: bool = False
    attachable: bool = False
    enable_ipv6: bool = False
    ipam_driver: str = ""
    ipam: list[IpamConfig] = []


class VolumeDef(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    external: bool = False
    driver: str = ""
    driver_opts: dict[str, str] = {}
    labels: dict[str, str] = {}


class FileDef(msgspec.Struct, frozen=True, kw_only=True):
    """A secret or config. Its data comes from a file, the environment or the compose file itself."""

    mark: Mark
    name: str = ""
    external: bool = False
    file: str = ""
    environment: str = ""
    content: str | None = None
    labels: dict[str, str] = {}
    driver: str = ""
    driver_opts: dict[str, str] = {}
    template_driver: str = ""


class Project(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""  # the top-level `name`, informational here
    services: dict[str, ServiceDef] = {}
    networks: dict[str, NetworkDef] = {}
    volumes: dict[str, VolumeDef] = {}
    secrets: dict[str, FileDef] = {}
    configs: dict[str, FileDef] = {}
