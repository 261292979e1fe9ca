"""Credentials for registries as `docker login` left them: config.json, credential helpers.

Owns finding them for one image. Source: docker/cli cli/config (auths, credHelpers, credsStore) and
docker-credential-helpers' protocol. Must not log in.
"""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from typing import Any

from overlace.model.errors import InvalidArgument
from overlace.model.reference import DEFAULT_DOMAIN, parse_reference

_HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"


def auth_header(image: str, config: dict[str, Any]) -> str:
    """X-Registry-Auth for an image; "" when nobody logged in to its registry. Raises InvalidArgument."""
    domain = parse_reference(image).domain
    server = _HUB if domain == DEFAULT_DOMAIN else domain
    helper = (config.get("credHelpers") or {}).get(server) or config.get("credsStore")
    found = _from_helper(str(helper), server) if helper else _from_file(config.get("auths") or {}, server)
    if not found:
        return ""
    return base64.urlsafe_b64encode(json.dumps({**found, "serveraddress": server}).encode()).decode()


def _from_file(auths: dict[str, Any], server: str) -> dict[str, str]:
    entry = auths.get(server) or auths.get(f"https://{server}") or auths.get(f"http://{server}")
    if not isinstance(entry, dict):
        return {}
    found = {key: str(entry[key]) for key in ("identitytoken", "registrytoken") if entry.get(key)}
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except (binascii.Error, ValueError):
            raise InvalidArgument(f"the login for {server} cannot be read; log in again") from None
        found |= {"username": user, "password": password.rstrip("\0")}
    return found


def _from_helper(helper: str, server: str) -> dict[str, str]:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=server, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidArgument(f"{program}: {error}") from None
    said = done.stdout.strip()
    if done.returncode:
        if "credentials not found" in said:
            return {}
        raise InvalidArgument(f"{program} get {server}: {said or done.stderr.strip()}")
    answer = json.loads(said)
    if answer.get("Username") == _TOKEN_USER:
        return {"identitytoken": answer["Secret"]}
    return {"username": answer["Username"], "password": answer["Secret"]}
