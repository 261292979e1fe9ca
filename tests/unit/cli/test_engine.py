"""Whom a command talks to: as the docker CLI would choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlace.cli.engine import DEFAULT_HOST, Engine
from overlace.model.errors import Internal, InvalidArgument


def test_the_flag_wins_over_docker_host_over_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.1.1.1:2375")
    assert Engine.of_user("unix:///x.sock").host == "unix:///x.sock"
    assert Engine.of_user().host == "tcp://10.1.1.1:2375"
    monkeypatch.delenv("DOCKER_HOST")
    assert Engine.of_user().host == DEFAULT_HOST


@pytest.mark.parametrize("host", ["ssh://root@host", "host", "unix://", "tcp://host:port"])
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(InvalidArgument, match=f"daemon address '{host}'"):
        Engine(host)


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "no.sock"
    with pytest.raises(Internal, match=f"no answer from {path}"):
        Engine(f"unix://{path}").call("GET", "/_ping")


def test_certificates_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match="DOCKER_TLS_VERIFY is set"):
        Engine.of_user("tcp://10.1.1.1:2376")
