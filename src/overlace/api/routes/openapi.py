"""/openapi.json: the document of `api/openapi.py`, for tools that read one."""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Route, answer


async def describe(call: Call) -> web.StreamResponse:
    from overlace.api.openapi import (
        document,
    )  # not at the top: the document is made of the routes' own structs

    return answer(document())


ROUTES = [Route("GET", "/openapi.json", describe)]
