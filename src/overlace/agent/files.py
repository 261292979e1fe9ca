"""A task's secrets and configs as files of its container, their templates filled in.

Owns targets, owners and what a templated text may name (swarmkit template/getter.go, context.go). Pure. Must not
fetch secrets nor write files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.objects import Config, Secret
from overlace.model.specs import ConfigReference, ContainerSpec, FileTarget, SecretReference
from overlace.model.template import Context, expand
from overlace.runtime import base

SECRETS_DIR = "/run/secrets"
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]")


class _Content(msgspec.Struct, frozen=True):
    data: bytes
    sensitive: bool  # a secret's words are in it


class TaskFiles:
    """The files of one task. `env` is its environment with templates filled in."""

    def __init__(
        self,
        spec: ContainerSpec,
        context: Context,
        env: tuple[str, ...],
        secrets: Mapping[str, Secret],
        configs: Mapping[str, Config],
    ) -> None:
        self._spec = spec
        self._context = context
        self._env = env
        self._secrets = secrets
        self._configs = configs

    def plan(self) -> tuple[base.FileMount, ...]:
        """Raises Unavailable when one has not arrived, InvalidArgument for an owner that is no number or a template
        that does not expand."""
        files = []
        for secret in self._spec.secrets:
            content = self._secret(secret)
            target = _file(secret)
            files.append(_mount(target, f"{SECRETS_DIR}/", content, "secret", secret.secret_name))
        for config in self._spec.configs:
            if config.file is None:
                continue
            files.append(_mount(config.file, "/", self._config(config), "config", config.config_name))
        return tuple(files)

    def _secret(self, ref: SecretReference) -> _Content:
        found = self._secrets.get(ref.secret_id)
        if found is None:
            raise Unavailable(f"secret {ref.secret_name or ref.secret_id} has not arrived on this node yet")
        data = found.spec.data
        if found.spec.templating is not None:
            data = self._expand("secret", ref.secret_name, data).data
        return _Content(data, True)

    def _config(self, ref: ConfigReference) -> _Content:
        found = self._configs.get(ref.config_id)
        if found is None:
            raise Unavailable(f"config {ref.config_name or ref.config_id} has not arrived on this node yet")
        if found.spec.templating is None:
            return _Content(found.spec.data, False)
        return self._expand("config", ref.config_name, found.spec.data)

    def _expand(self, kind: str, name: str, data: bytes) -> _Content:
        """What a template names is taken as it is stored: one templated text is never put into another."""
        sensitive = False

        def secret(target: str) -> str:
            nonlocal sensitive
            for ref in self._spec.secrets:
                if _file(ref).name == target:
                    found = self._secrets.get(ref.secret_id)
                    if found is None:
                        raise Unavailable(f"secret {ref.secret_name} has not arrived on this node yet")
                    sensitive = True
                    return _text(found.spec.data)
            raise InvalidArgument(f"secret target {target} not found")

        def config(target: str) -> str:
            for ref in self._spec.configs:
                if ref.file is not None and ref.file.name == target:
                    found = self._configs.get(ref.config_id)
                    if found is None:
                        raise Unavailable(f"config {ref.config_name} has not arrived on this node yet")
                    return _text(found.spec.data)
            raise InvalidArgument(f"config target {target} not found")

        def env(name: str) -> str:
            values = [e.partition("=")[2] for e in self._env if e.partition("=")[0] == name]
            return values[-1] if values else ""

        try:
            text = expand(_text(data), self._context, {"secret": secret, "config": config, "env": env})
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to expand templated {kind} {name}: {error.message}") from None
        return _Content(text.encode("utf-8", "surrogateescape"), sensitive)


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8 pass through unharmed."""
    return data.decode("utf-8", "surrogateescape")


def _file(ref: SecretReference) -> FileTarget:
    return ref.file or FileTarget(name=ref.secret_name)


def _mount(file: FileTarget, folder: str, content: _Content, kind: str, name: str) -> base.FileMount:
    target = file.name or name
    return base.FileMount(
        target=target if _ABSOLUTE.match(target) else folder + target,
        data=content.data,
        uid=_number(file.uid, kind, name),
        gid=_number(file.gid, kind, name),
        mode=file.mode,
        secret=content.sensitive,
    )


def _number(text: str, kind: str, name: str) -> int:
    try:
        return int(text or "0")
    except ValueError:
        raise InvalidArgument(
            f"{kind} {name}: owner {text!r} is not a number; give a numeric UID and GID"
        ) from None
