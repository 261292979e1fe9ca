"""X-Registry-Auth as clients write it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from overlace.model.errors import InvalidArgument
from overlace.runtime.auth import decode_auth
from overlace.runtime.base import RegistryAuth


def test_decode_auth() -> None:
    def header(document: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    assert decode_auth("") is None
    assert decode_auth(header({})) is None
    assert decode_auth(header({"username": "u", "password": "p", "serveraddress": "s"})) == RegistryAuth(
        "u", "p", "", "s"
    )
    assert decode_auth(header({"auth": base64.b64encode(b"u:p:q").decode()})) == RegistryAuth("u", "p:q")
    assert decode_auth(header({"identitytoken": "t"})) == RegistryAuth(identity_token="t")
    for bad in ("!!!", header([1]), "a"):
        with pytest.raises(InvalidArgument, match="invalid X-Registry-Auth header"):
            decode_auth(bad)
