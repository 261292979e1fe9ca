"""/secrets and /configs. Owns the routes; rules are manager.control's."""

from __future__ import annotations

import msgspec
from aiohttp import web

from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert.files import config as show_config
from overlace.api.convert.files import secret as show_secret
from overlace.manager.control import lookup
from overlace.model.objects import Config, Secret
from overlace.model.specs import ConfigSpec, SecretSpec


def _show_secret(call: Call, found: Secret) -> msgspec.Raw:
    return call.shared.rendered.get("secret", found.id, (found,), lambda: show_secret(found))


def _show_config(call: Call, found: Config) -> msgspec.Raw:
    return call.shared.rendered.get("config", found.id, (found,), lambda: show_config(found))


def _secret(call: Call) -> Secret:
    manager = call.manager()
    return lookup.find(manager.store.view(), Secret, call.args["id"])


def _config(call: Call) -> Config:
    manager = call.manager()
    return lookup.find(manager.store.view(), Config, call.args["id"])


async def list_secrets(call: Call) -> web.StreamResponse:
    manager = call.manager()
    filters = call.filters()
    found = lookup.list_secrets(manager.store.view(), filters)
    return answer([_show_secret(call, s) for s in found])


async def create_secret(call: Call) -> web.StreamResponse:
    spec = await call.body(SecretSpec)
    return answer({"ID": await call.manager().control.create_secret(spec)}, 201)


async def inspect_secret(call: Call) -> web.StreamResponse:
    return answer(_show_secret(call, _secret(call)))


async def update_secret(call: Call) -> web.StreamResponse:
    version = call.object_version("secret")
    spec = await call.body(SecretSpec)
    await call.manager().control.update_secret(_secret(call).id, version, spec)
    return empty()


async def remove_secret(call: Call) -> web.StreamResponse:
    await call.manager().control.remove_secret(_secret(call).id)
    return empty(204)


async def list_configs(call: Call) -> web.StreamResponse:
    manager = call.manager()
    found = lookup.list_configs(manager.store.view(), call.filters())
    return answer([_show_config(call, c) for c in found])


async def create_config(call: Call) -> web.StreamResponse:
    spec = await call.body(ConfigSpec)
    return answer({"ID": await call.manager().control.create_config(spec)}, 201)


async def inspect_config(call: Call) -> web.StreamResponse:
    return answer(_show_config(call, _config(call)))


async def update_config(call: Call) -> web.StreamResponse:
    version = call.object_version("config")
    spec = await call.body(ConfigSpec)
    await call.manager().control.update_config(_config(call).id, version, spec)
    return empty()


async def remove_config(call: Call) -> web.StreamResponse:
    await call.manager().control.remove_config(_config(call).id)
    return empty(204)


ROUTES = [
    Route("GET", "/secrets", list_secrets),
    Route("POST", "/secrets/create", create_secret),
    Route("GET", "/secrets/{id}", inspect_secret),
    Route("DELETE", "/secrets/{id}", remove_secret),
    Route("POST", "/secrets/{id}/update", update_secret),
    Route("GET", "/configs", list_configs),
    Route("POST", "/configs/create", create_config),
    Route("GET", "/configs/{id}", inspect_config),
    Route("DELETE", "/configs/{id}", remove_config),
    Route("POST", "/configs/{id}/update", update_config),
]
