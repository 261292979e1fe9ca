"""Credentials for registries as clients send them. Pure; must not know who uses them."""

from __future__ import annotations

import base64
import binascii
import json

import msgspec

from overlace.model.errors import InvalidArgument
from overlace.runtime.base import RegistryAuth


def decode_auth(header: str) -> RegistryAuth | None:
    """Docker's X-Registry-Auth: base64url JSON. None when empty. Raises InvalidArgument when it cannot be
    read."""
    if not header:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        auth = RegistryAuth(
            username=str(found.get("username") or ""),
            password=str(found.get("password") or ""),
            identity_token=str(found.get("identitytoken") or ""),
            server=str(found.get("serveraddress") or ""),
        )
        if not auth.username and not auth.password and found.get("auth"):
            name, _, password = base64.b64decode(str(found["auth"])).decode().partition(":")
            auth = msgspec.structs.replace(auth, username=name, password=password)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("invalid X-Registry-Auth header: expected base64url-encoded JSON") from error
    return auth if auth != RegistryAuth(server=auth.server) else None


def encode_auth(auth: RegistryAuth) -> str:
    """The X-Registry-Auth header that `decode_auth` reads."""
    found = {
        "username": auth.username,
        "password": auth.password,
        "identitytoken": auth.identity_token,
        "serveraddress": auth.server,
    }
    return base64.urlsafe_b64encode(msgspec.json.encode({k: v for k, v in found.items() if v})).decode()
