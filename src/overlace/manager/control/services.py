"""Create, update, roll back and remove services.

Owns the checks that need the rest of the swarm: networks, secrets, configs, ports of other services,
versions. They run before the registry is asked (to refuse quickly) and again, under the lock, before the
commit.
"""

from __future__ import annotations

import msgspec

from overlace.manager.allocate.services import settled_endpoint
from overlace.manager.control.base import check_version, swarm
from overlace.manager.control.images import Images
from overlace.manager.control.lookup import find, mode_of
from overlace.manager.control.names import random_name
from overlace.manager.control.service_spec import check_service, is_job, may_change_tasks, normalise
from overlace.manager.schedule.capable import explain_incapable, warn_incapable
from overlace.model.errors import FailedPrecondition, InvalidArgument, Unimplemented
from overlace.model.objects import (
    PEER_PORT,
    SWARM_PORT,
    Cluster,
    Config,
    JobStatus,
    Network,
    Node,
    Secret,
    Service,
    UpdateStatus,
)
from overlace.model.specs import HOST_NETWORKS, NetworkAttachmentConfig, PortConfig, ServiceSpec
from overlace.store.base import Delete, Put, View
from overlace.store.memory import name_conflict
from overlace.wire.transport import parse_address


class Services(Images):
    async def create_service(self, spec: ServiceSpec, registry_auth: str = "") -> tuple[str, list[str]]:
        """The new service's id and warnings. An empty name gets an invented one.

        Raises InvalidArgument, FailedPrecondition, Conflict (the name is taken), Unimplemented.
        """
        spec = normalise(spec)
        if not spec.name:
            spec = msgspec.structs.replace(spec, name=self._free_name())
        check_service(spec)
        self._check_name(spec)
        check_surroundings(self.store.view(), spec)
        spec, warning = await self._with_image(spec, None, registry_auth)
        async with self._lock:
            spec = check_surroundings(self.store.view(), spec)
            check_capabilities(self.store.view(), spec)
            less = warn_incapable(self.store.view(), spec)
            service = Service(
                id=self._new_id(),
                spec=spec,
                endpoint=settled_endpoint(spec),
                spec_version=1,
                registry_auth=registry_auth,
                image_warning=warning,
                job_status=JobStatus(last_execution=self._clock()) if is_job(spec) else None,
            )
            await self._commit([Put(service, expect=0)])
        return service.id, [*([warning] if warning else []), *less]

    async def update_service(
        self,
        id: str,
        version: int,
        spec: ServiceSpec,
        *,
        registry_auth: str = "",
        registry_auth_from: str = "spec",
        rollback: str = "",
    ) -> list[str]:
        """Replace the spec, or swap it with the previous one (`rollback="previous"`). Returns warnings.

        Raises NotFound, OutOfSequence (`version` is not the service's), InvalidArgument, FailedPrecondition,
        Unimplemented (another name or mode).
        """
        if rollback not in ("", "none", "previous"):
            raise InvalidArgument(f"unrecognized rollback option {rollback}")
        if registry_auth_from not in ("", "spec", "previous-spec"):
            raise InvalidArgument("unsupported registryAuthFrom value")
        current = find(self.store.view(), Service, id)
        back = rollback == "previous"
        warning = current.image_warning
        if (back or registry_auth_from == "previous-spec") and current.previous_spec is None:
            raise swarm(FailedPrecondition(f"service {current.id} does not have a previous spec"))
        if not registry_auth:  # credentials stay unless new ones are given
            registry_auth = current.registry_auth
        if back:
            assert current.previous_spec is not None
            check_version(current.version, version)
            new = current.previous_spec
        else:
            new = normalise(spec)
            if not new.name:
                new = msgspec.structs.replace(new, name=current.spec.name)
            check_service(new)
            check_version(current.version, version)
            _check_same_service(current, new)
            new = check_surroundings(self.store.view(), new, current.id)
            same_image = _image(new) == _image(current.spec)
            new, found = await self._with_image(new, current.spec, registry_auth)
            warning = current.image_warning if same_image else found
        async with self._lock:
            view = self.store.view()
            current = find(view, Service, current.id)
            check_version(current.version, version)
            new = check_surroundings(view, new, current.id)
            check_capabilities(view, new)
            await self._commit(
                [Put(self._updated(current, new, back, registry_auth, warning), expect=version)]
            )
        return [warning] if warning and warning != current.image_warning else []

    async def remove_service(self, id: str) -> None:
        """Its tasks are taken down by the orchestrator. Raises NotFound."""
        async with self._lock:
            service = find(self.store.view(), Service, id)
            await self._commit([Delete("service", service.id)])

    def _updated(
        self, current: Service, new: ServiceSpec, back: bool, registry_auth: str, warning: str
    ) -> Service:
        # Any number not used before; the tasks made from now on carry it.
        spec_version = current.spec_version
        if may_change_tasks(current.spec, new):
            spec_version = max(current.spec_version + 1, current.version)
        else:
            new = msgspec.structs.replace(new, task_template=current.spec.task_template)
        status = None
        job = None
        if is_job(new):  # every update runs the job anew, as in Docker
            iteration = current.job_status.iteration + 1 if current.job_status is not None else 0
            job = JobStatus(iteration=iteration, last_execution=self._clock())
        elif back:
            status = UpdateStatus(
                state="rollback_started",
                started_at=self._clock(),
                message="manually requested rollback",
                spec_version=spec_version,
            )
        return msgspec.structs.replace(
            current,
            spec=new,
            previous_spec=current.spec,
            spec_version=spec_version,
            update_status=status,
            job_status=job,
            registry_auth=registry_auth,
            image_warning=warning,
        )

    def _free_name(self) -> str:
        view = self.store.view()
        name = random_name()
        while view.by_name(Service, name) is not None:
            name = f"{random_name()}{len(name)}"
        return name

    def _check_name(self, spec: ServiceSpec) -> None:
        if self.store.view().by_name(Service, spec.name) is not None:
            raise swarm(name_conflict(Service(id="", spec=spec)))


def _image(spec: ServiceSpec) -> str:
    container = spec.task_template.container_spec
    return container.image if container is not None else ""


def _check_same_service(current: Service, new: ServiceSpec) -> None:
    if new.name != current.spec.name:
        raise swarm(Unimplemented("renaming services is not supported"))
    if mode_of(msgspec.structs.replace(current, spec=new)) != mode_of(current):
        raise swarm(Unimplemented("service mode change is not allowed"))


def check_surroundings(view: View, spec: ServiceSpec, own_id: str = "") -> ServiceSpec:
    """The spec with its networks named by id. Raises InvalidArgument or FailedPrecondition when something it
    needs is not there or is another's."""
    spec = _with_network_ids(view, spec)
    _check_ports(view, spec, own_id)
    container = spec.task_template.container_spec
    if container is not None:
        _check_exist("secret", [(s.secret_id, s.secret_name) for s in container.secrets], view)
        _check_exist("config", [(c.config_id, c.config_name) for c in container.configs], view)
    return spec


def check_capabilities(view: View, spec: ServiceSpec) -> None:
    """Raises InvalidArgument when every node that could run it otherwise lacks what its network needs."""
    why = explain_incapable(view, spec)
    if why:
        raise swarm(InvalidArgument(f"service {spec.name}: {why}"))


def _with_network_ids(view: View, spec: ServiceSpec) -> ServiceSpec:
    found: list[NetworkAttachmentConfig] = []
    for attachment in spec.task_template.networks:
        target = attachment.target
        network = view.get(Network, target) or view.by_name(Network, target)
        if network is None and target in HOST_NETWORKS:
            found.append(attachment)
            continue
        if network is None:
            raise InvalidArgument(f"network {target} not found")
        if network.spec.config_only:
            raise InvalidArgument(
                f"network {network.spec.name} is a configuration network: services cannot use it"
            )
        if network.spec.ingress:
            name = network.spec.name
            raise swarm(
                InvalidArgument(f'Service cannot be explicitly attached to the ingress network "{name}"')
            )
        if any(other.target == network.id for other in found):
            raise InvalidArgument(f"network {network.spec.name} is given twice")
        found.append(msgspec.structs.replace(attachment, target=network.id))
    if found == spec.task_template.networks:
        return spec
    return msgspec.structs.replace(
        spec, task_template=msgspec.structs.replace(spec.task_template, networks=found)
    )


def _ports(spec: ServiceSpec) -> list[PortConfig]:
    return spec.endpoint_spec.ports if spec.endpoint_spec is not None else []


def _check_ports(view: View, spec: ServiceSpec, own_id: str) -> None:
    """An ingress port is one service's in the whole swarm, against every other use; host ports may repeat:
    each host has its own, the scheduler keeps them apart."""
    ports = _ports(spec)
    _check_own_ports(view, ports, own_id)
    if any(port.publish_mode == "ingress" for port in ports) and not any(
        network.spec.ingress for network in view.all(Network)
    ):
        raise swarm(FailedPrecondition("service needs ingress network, but no ingress network is present"))
    wanted = {(port.protocol, port.published_port): port for port in ports if port.published_port}
    if not wanted:
        return
    for other in view.all(Service):
        if other.id == own_id:
            continue
        given = other.endpoint.ports if other.endpoint is not None else ()
        for port in (*_ports(other.spec), *given):
            mine = wanted.get((port.protocol, port.published_port))
            if mine is None or mine.publish_mode == port.publish_mode == "host":
                continue
            how = "a host-published" if port.publish_mode == "host" else "an ingress"
            raise swarm(
                InvalidArgument(
                    f"port '{port.published_port}' is already in use by service '{other.spec.name}'"
                    f" ({other.id}) as {how} port"
                )
            )


def _check_own_ports(view: View, ports: list[PortConfig], own_id: str) -> None:
    """The swarm's own ports are no service's: who took them would cut hosts off. A service that has one from before this
    was refused may keep it."""
    before = view.get(Service, own_id) if own_id else None
    kept = {(p.protocol, p.published_port) for p in (_ports(before.spec) if before is not None else ())}
    nodes = [n for n in view.all(Node) if not n.removed]
    addresses = [n.manager_status.addr for n in nodes if n.manager_status is not None]
    own = "managers are reached at this port"
    taken = {("tcp", SWARM_PORT): own}
    taken |= {("tcp", parse_address(address)[1]): own for address in addresses}
    if sum(n.spec.role == "manager" for n in nodes) > 1:  # one that is on its way counts
        taken[("tcp", PEER_PORT)] = "managers keep their state together over this port"
    for cluster in view.all(Cluster):
        taken[("udp", cluster.data_path_port)] = "the tunnels between hosts arrive at this port"
    for port in ports:
        key = port.protocol, port.published_port
        if key in taken and key not in kept:
            raise InvalidArgument(
                f"EndpointSpec.Ports PublishedPort {port.published_port}/{port.protocol}: {taken[key]}; use another"
            )


def _check_exist(kind: str, references: list[tuple[str, str]], view: View) -> None:
    missing = []
    for id, name in references:
        thing = view.get(Secret if kind == "secret" else Config, id)
        if not isinstance(thing, Secret | Config) or thing.spec.name != name:
            missing.append(name)
    if missing:
        raise swarm(
            InvalidArgument(f"{kind}{'s' if len(missing) > 1 else ''} not found: {', '.join(missing)}")
        )
