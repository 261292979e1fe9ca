"""Whether hosts can honour a container's Privileges: seccomp, AppArmor, SELinux, credential spec.

Owns the rules and their sentences. Pure. Shapes: moby api/types/swarm/container.go (Privileges).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from overlace.manager.control.base import swarm
from overlace.manager.control.words import unsupported
from overlace.model.errors import InvalidArgument
from overlace.model.seccomp import check_profile
from overlace.model.specs import ConfigReference


def check_privileges(privileges: Mapping[str, Any], configs: Sequence[ConfigReference]) -> None:
    """Raises InvalidArgument or Unimplemented for the first thing wrong."""
    for key, value in privileges.items():
        match key:
            case "NoNewPrivileges":
                if not isinstance(value, bool):
                    raise InvalidArgument(
                        f"Privileges.NoNewPrivileges: expected true or false, not {value!r}"
                    )
            case "Seccomp":
                _check_seccomp(_document(key, value))
            case "AppArmor":
                _check_apparmor(_document(key, value))
            case "SELinuxContext":
                _check_selinux(_document(key, value))
            case "CredentialSpec":
                _check_credentials(_document(key, value), configs)
            case _:
                raise InvalidArgument(f"unknown field Privileges.{key}")


def _document(key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"Privileges.{key}: expected an object, not {value!r}")
    return value


def _check_seccomp(asked: Mapping[str, Any]) -> None:
    mode, profile = asked.get("Mode") or "default", asked.get("Profile") or ""
    if mode not in ("default", "unconfined", "custom"):
        raise InvalidArgument(
            f'unknown security option seccomp mode: "{mode}"; use default, unconfined or custom'
        )
    if mode != "custom":
        if profile:
            raise InvalidArgument("Privileges.Seccomp: Profile goes with Mode custom only")
        return
    try:
        text = base64.b64decode(profile, validate=True)
    except (TypeError, ValueError):
        raise InvalidArgument("Privileges.Seccomp.Profile: expected base64 of a seccomp profile") from None
    check_profile(text)


def _check_apparmor(asked: Mapping[str, Any]) -> None:
    mode = asked.get("Mode") or "default"
    if mode not in ("default", "disabled"):  # hosts load no profile: both are what is the case
        raise InvalidArgument(f'unknown AppArmor mode: "{mode}"; use default or disabled')


def _check_selinux(asked: Mapping[str, Any]) -> None:
    for field, value in asked.items():
        if field not in ("Disable", "User", "Role", "Type", "Level"):
            raise InvalidArgument(f"unknown field Privileges.SELinuxContext.{field}")
        if field != "Disable" and value:
            raise unsupported(
                f"Privileges.SELinuxContext.{field}", "containers run without an SELinux label of their own"
            )


def _check_credentials(asked: Mapping[str, Any], configs: Sequence[ConfigReference]) -> None:
    given = [field for field in ("Config", "File", "Registry") if asked.get(field)]
    if not given:
        return
    config = asked.get("Config")
    if config and not any(ref.config_id == config and ref.runtime is not None for ref in configs):
        raise swarm(
            InvalidArgument(
                f"CredentialSpec references config '{config}', but that config isn't in config references "
                "with RuntimeTarget"
            )
        )
    raise unsupported(
        "Privileges.CredentialSpec", "no host of ours hands gMSA credentials of a domain to a container"
    )
