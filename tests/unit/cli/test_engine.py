"""Whom a command talks to: as the docker CLI would choose."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from overlace.cli.engine import DEFAULT_HOST, Engine
from overlace.model.errors import Internal, InvalidArgument


def test_the_flag_wins_over_docker_host_over_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.1.1.1:2375")
    assert Engine.of_user("unix:///x.sock").host == "unix:///x.sock"
    assert Engine.of_user().host == "tcp://10.1.1.1:2375"
    monkeypatch.delenv("DOCKER_HOST")
    assert Engine.of_user().host == DEFAULT_HOST


def test_contexts_as_docker_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    # the names `docker context create lab --docker host=tcp://10.2.2.2:2375` makes: sha256 of "lab"
    folder = tmp_path / "contexts/meta" / hashlib.sha256(b"lab").hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(
        '{"Name": "lab", "Endpoints": {"docker": {"Host": "tcp://10.2.2.2:2375"}}}'
    )
    assert Engine.of_user().host == DEFAULT_HOST
    (tmp_path / "config.json").write_text('{"currentContext": "lab"}')
    assert Engine.of_user().host == "tcp://10.2.2.2:2375"
    assert Engine.of_user("unix:///x.sock").host == "unix:///x.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert Engine.of_user().host == DEFAULT_HOST
    monkeypatch.setenv("DOCKER_CONTEXT", "nosuch")
    with pytest.raises(InvalidArgument, match='current context "nosuch" is not found'):
        Engine.of_user()
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.1.1.1:2375")
    assert Engine.of_user().host == "tcp://10.1.1.1:2375"


@pytest.mark.parametrize("host", ["ssh://root@host", "host", "unix://", "tcp://host:port"])
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(InvalidArgument, match=f"daemon address '{host}'"):
        Engine(host)


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "no.sock"
    with pytest.raises(Internal, match=f"no answer from {path}.*overlace daemon --host unix://{path}"):
        Engine(f"unix://{path}").call("GET", "/_ping")


def test_what_to_do_about_a_daemon_nobody_reaches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("overlace.cli.engine.DEFAULT_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(Internal, match=r"no daemon runs on this host: start it .systemctl start overlace"):
        Engine.of_user().call("GET", "/_ping")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(Internal, match=r"refused; no daemon listens there: .* or correct DOCKER_HOST"):
        Engine.of_user().call("GET", "/_ping")


def test_certificates_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match="DOCKER_TLS_VERIFY is set"):
        Engine.of_user("tcp://10.1.1.1:2376")
