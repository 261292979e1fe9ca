"""Secrets and configs as the Engine API shows them: a secret's data is never given back. Pure."""

from __future__ import annotations

from overlace.api.convert.common import Json, document, header
from overlace.model.objects import Config, Secret


def secret(found: Secret) -> Json:
    spec = document(found.spec)
    spec.pop("Data", None)
    return {**header(found), "Spec": spec}


def config(found: Config) -> Json:
    return {**header(found), "Spec": document(found.spec)}
