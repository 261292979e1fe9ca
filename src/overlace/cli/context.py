"""The docker CLI's contexts: which daemon `docker context use` or DOCKER_CONTEXT names.

Owns reading them (docker/cli cli/context/store: meta and TLS files under `$DOCKER_CONFIG/contexts`). Must not write.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
from pathlib import Path
from typing import Any

from overlace.model.errors import InvalidArgument


def docker_folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def docker_config() -> dict[str, Any]:
    """`$DOCKER_CONFIG/config.json`; {} when there is none. Raises InvalidArgument when it cannot be read."""
    return _json(docker_folder() / "config.json") or {}


def current_context() -> tuple[str, ssl.SSLContext | None] | None:
    """Address and TLS of the chosen context's daemon; None when none is chosen. Raises InvalidArgument."""
    name = os.environ.get("DOCKER_CONTEXT") or str(docker_config().get("currentContext") or "")
    if name in ("", "default"):
        return None
    folder = docker_folder() / "contexts"
    digest = hashlib.sha256(name.encode()).hexdigest()
    found = _json(folder / "meta" / digest / "meta.json")
    if found is None:
        raise InvalidArgument(
            f'current context "{name}" is not found on the file system, please check your config file at'
            f" {docker_folder() / 'config.json'}"
        )
    endpoint = (found.get("Endpoints") or {}).get("docker") or {}
    if not endpoint.get("Host"):
        return None
    files = folder / "tls" / digest / "docker"
    return str(endpoint["Host"]), _tls(files, bool(endpoint.get("SkipTLSVerify"))) if files.exists() else None


def _tls(folder: Path, skip_verify: bool) -> ssl.SSLContext:
    try:
        authority = folder / "ca.pem"
        context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
        if skip_verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if (folder / "cert.pem").exists():
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"{folder}: {error}") from None
    return context


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    return found if isinstance(found, dict) else {}
