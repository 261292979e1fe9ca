"""The command lines of `overlace plan` and `overlace stack deploy`, and the credentials they send."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from overlace.cli.compose_files import read_stack
from overlace.cli.context import docker_config
from overlace.cli.plan import plan
from overlace.cli.registry_login import auth_header
from overlace.cli.stack import deploy
from overlace.model.errors import InvalidArgument


@pytest.mark.parametrize(
    ("args", "detach", "prune"),
    [
        (["s"], None, False), (["-d", "s"], True, False), (["--detach=false", "s"], False, False),
        (["-d=false", "--prune=true", "s"], False, True), (["--detach=true", "--prune=false", "s"], True, False),
        (["--no-detach", "--prune", "s"], False, True),
    ],
)  # fmt: skip
def test_flags_as_docker_spells_them(args: list[str], detach: bool, prune: bool) -> None:
    context = deploy.make_context("deploy", list(args))
    assert (context.params["detach"], context.params["prune"]) == (detach, prune)


def test_times_are_durations() -> None:
    assert deploy.make_context("deploy", ["--wait-timeout", "1m30s", "s"]).params["wait_timeout"] == 90
    with pytest.raises(click.BadParameter, match="write it with units"):
        deploy.make_context("deploy", ["--wait-timeout", "90", "s"])


def test_wrong_usage_of_plan_is_an_error_not_a_change() -> None:
    assert CliRunner().invoke(plan, ["--nonsense", "s"]).exit_code == 1
    assert CliRunner().invoke(plan, []).exit_code == 1


def test_a_stack_is_read_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="no compose file: name one with -c"):
        read_stack("s", [], [], [], False)
    (tmp_path / "compose.yaml").write_text(
        "services: {web: {image: 'app:$TAG', volumes: ['./d:/d']}, dev: {image: x, profiles: [dev]}}\n"
        "secrets: {a: {file: ./pw}, b: {environment: PW}}\nconfigs: {c: {content: 'x=$$1'}}"
    )
    (tmp_path / ".env").write_text("TAG=3\n")
    (tmp_path / "other.env").write_text("TAG=4\n")
    (tmp_path / "pw").write_bytes(b"\x00binary")
    monkeypatch.setenv("PW", "from the environment")
    found = read_stack("s", [], [], [], False)
    assert found.project.services["web"].container.image == "app:3"
    assert found.project.services["web"].volumes[0].mount.source == str(tmp_path / "d")
    assert {w.key: w.spec.data for w in found.wishes} == {
        "a": b"\x00binary",
        "b": b"from the environment",
        "c": b"x=$1",
    }
    assert (
        read_stack("s", [], ["other.env"], ["dev"], False).project.services["web"].container.image == "app:4"
    )
    monkeypatch.setenv("COMPOSE_PROFILES", "x, dev")
    assert "dev" in read_stack("s", [], [], [], False).project.services
    monkeypatch.delenv("PW")
    (tmp_path / "pw").write_bytes(b"")
    with pytest.raises(InvalidArgument) as caught:
        read_stack("s", ["compose.yaml"], [], [], False)
    assert caught.value.message.splitlines() == [
        "compose.yaml:2:14: secrets.a: its data is 0 bytes; more than 0 and less than 512000",
        "compose.yaml:2:31: secrets.b: the variable PW is not set",
    ]
    with pytest.raises(InvalidArgument, match=r"nosuch\.yml: No such file"):
        read_stack("s", ["nosuch.yml"], [], [], False)
    with pytest.raises(InvalidArgument, match='invalid stack name "a b"'):
        read_stack("a b", [], [], [], False)


def test_registry_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert docker_config() == {}
    auth = base64.b64encode(b"me:pw:with:colons").decode()
    config = {
        "auths": {
            "registry.example:5000": {"auth": auth},
            "https://index.docker.io/v1/": {"identitytoken": "t"},
        },
        "credHelpers": {"helped.example": "lab"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    helper = tmp_path / "docker-credential-lab"
    helper.write_text(
        '#!/bin/sh\nread server\necho "{\\"Username\\": \\"u\\", \\"Secret\\": \\"for $server\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def sent(image: str) -> dict[str, str]:
        header = auth_header(image, docker_config())
        return json.loads(base64.urlsafe_b64decode(header)) if header else {}

    assert sent("registry.example:5000/app:1") == {
        "username": "me", "password": "pw:with:colons", "serveraddress": "registry.example:5000",
    }  # fmt: skip
    assert sent("app")["identitytoken"] == "t" and sent("other.example/app") == {}
    assert sent("helped.example/app") == {
        "username": "u", "password": "for helped.example", "serveraddress": "helped.example",
    }  # fmt: skip
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain; exit 1\n")
    assert sent("helped.example/app") == {}
    helper.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(InvalidArgument, match=r"docker-credential-lab get helped\.example: broken"):
        sent("helped.example/app")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        docker_config()


@pytest.mark.parametrize(
    "rest",
    [
        "    secrets: [s]\nsecrets: {s: {file: /dev/zero}}\n",
        "    configs: [s]\nconfigs: {s: {file: /dev/zero}}\n",
        "    env_file: [/dev/zero]\n",
    ],
)
def test_files_without_an_end_are_refused(tmp_path: Path, rest: str) -> None:
    (tmp_path / "c.yml").write_text(f"services:\n  web:\n    image: app\n{rest}")
    with pytest.raises(InvalidArgument, match="it is longer than"):
        read_stack("s", [str(tmp_path / "c.yml")], [], [], False)
    with pytest.raises(InvalidArgument, match="/dev/zero: it is longer than"):
        read_stack("s", ["/dev/zero"], [], [], False)
