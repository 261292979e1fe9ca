"""Create, relabel and remove secrets and configs: two kinds, one set of rules (swarmkit controlapi/secret.go,
config.go).

Owns their limits and the "in use" check. Their data never changes: services would run on with the old one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from overlace.manager.control.base import Core, check_version, swarm
from overlace.manager.control.lookup import find
from overlace.manager.control.names import check_secret_name
from overlace.manager.control.words import unsupported
from overlace.model.errors import InvalidArgument
from overlace.model.objects import Config, Secret, Service
from overlace.model.specs import ConfigSpec, ContainerSpec, Driver, SecretSpec
from overlace.model.template import TEMPLATE_DRIVER
from overlace.store.base import Delete, Put, View
from overlace.store.memory import name_conflict

MAX_SECRET = 500 * 1024  # bytes, exclusive
MAX_CONFIG = 1000 * 1024


class Secrets(Core):
    async def create_secret(self, spec: SecretSpec) -> str:
        """Raises InvalidArgument, Conflict, Unimplemented."""
        if spec.driver is not None:
            raise unsupported("secret Driver", "leave it out; the swarm keeps secrets itself")
        _check_new("secret", spec, MAX_SECRET)
        return await self._create(Secret(id=self._new_id(), spec=spec))

    async def create_config(self, spec: ConfigSpec) -> str:
        """Raises InvalidArgument, Conflict, Unimplemented."""
        _check_new("config", spec, MAX_CONFIG)
        return await self._create(Config(id=self._new_id(), spec=spec))

    async def update_secret(self, id: str, version: int, spec: SecretSpec) -> None:
        """Labels only. Raises NotFound, OutOfSequence, InvalidArgument."""
        await self._relabel(Secret, id, version, spec)

    async def update_config(self, id: str, version: int, spec: ConfigSpec) -> None:
        """Labels only. Raises NotFound, OutOfSequence, InvalidArgument."""
        await self._relabel(Config, id, version, spec)

    async def remove_secret(self, id: str) -> None:
        """Raises NotFound, InvalidArgument while a service refers to it."""
        await self._remove(
            Secret, id, lambda container, id: any(r.secret_id == id for r in container.secrets)
        )

    async def remove_config(self, id: str) -> None:
        """Raises NotFound, InvalidArgument while a service refers to it."""
        await self._remove(
            Config, id, lambda container, id: any(r.config_id == id for r in container.configs)
        )

    async def _relabel(
        self, kind: type[Secret] | type[Config], id: str, version: int, spec: SecretSpec | ConfigSpec
    ) -> None:
        async with self._lock:
            current: Secret | Config = find(self.store.view(), kind, id)
            _check_labels_only(current.spec, spec)  # first, as in swarmkit: `overlace plan` asks by it
            check_version(current.version, version)
            changed = msgspec.structs.replace(current.spec, labels=spec.labels)
            await self._commit([Put(msgspec.structs.replace(current, spec=changed), expect=version)])

    async def _remove(
        self, kind: type[Secret] | type[Config], id: str, refers: Callable[[ContainerSpec, str], bool]
    ) -> None:
        async with self._lock:
            view = self.store.view()
            found: Secret | Config = find(view, kind, id)
            _check_unused(found, _users(view, found.id, refers))
            await self._commit([Delete(kind.kind, found.id)])

    async def _create(self, thing: Secret | Config) -> str:
        async with self._lock:
            if self.store.view().by_name(type(thing), thing.spec.name) is not None:
                raise swarm(name_conflict(thing))
            await self._commit([Put(thing, expect=0)])
        return thing.id


def _check_new(kind: str, spec: SecretSpec | ConfigSpec, limit: int) -> None:
    _check_templating(kind, spec.templating)
    check_secret_name(spec.name)
    if not 0 < len(spec.data) < limit:
        raise swarm(InvalidArgument(f"{kind} data must be larger than 0 and less than {limit} bytes"))


def _check_templating(kind: str, driver: Driver | None) -> None:
    if driver is None:
        return
    if driver.name != TEMPLATE_DRIVER:
        raise InvalidArgument(
            f'{kind} Templating: there is no template driver "{driver.name}"; use {TEMPLATE_DRIVER}'
        )
    if driver.options:
        raise InvalidArgument(
            f"{kind} Templating: the driver {TEMPLATE_DRIVER} has no option {min(driver.options)}; leave it out"
        )


def _check_labels_only(current: SecretSpec | ConfigSpec, new: SecretSpec | ConfigSpec) -> None:
    """What is left out counts as unchanged: clients do not know the data of a secret."""
    driver = isinstance(new, SecretSpec) and new.driver is not None
    if (
        (new.name and new.name != current.name)
        or (new.data and new.data != current.data)
        or new.templating not in (None, current.templating)
        or driver
    ):
        raise swarm(InvalidArgument("only updates to Labels are allowed"))


def _users(view: View, id: str, refers: Callable[[ContainerSpec, str], bool]) -> list[str]:
    return sorted(
        service.spec.name
        for service in view.all(Service)
        if (container := service.spec.task_template.container_spec) is not None and refers(container, id)
    )


def _check_unused(thing: Secret | Config, users: list[str]) -> None:
    if users:
        services = "service" if len(users) == 1 else "services"
        raise swarm(
            InvalidArgument(
                f"{thing.kind} '{thing.spec.name}' is in use by the following {services}: {', '.join(users)}"
            )
        )
