"""Several files as one: merging, include, extends, profiles, paths."""

# ruff: noqa: E501  whole files in a line
from __future__ import annotations

from typing import Any

import pytest

from overlace.compose.problems import ComposeError

from . import kit

BASE = """\
services:
  web:
    image: app
    command: [a]
    environment: [A=1, B=2]
    labels: {x: "1"}
    ports: ["80:80", "81:81"]
    volumes: ["vol:/data", "/z", "./x:/conf"]
    dns: 192.0.2.1
    cap_add: [CHOWN]
    ulimits: {nofile: {soft: 1, hard: 2}}
    logging: {driver: json-file, options: {max-size: 1m}}
    networks: {front: {aliases: [one]}}
    healthcheck: {test: [CMD, old], interval: 5s}
    configs: [{source: c, target: /c}]
    deploy: {replicas: 1, labels: {l: "1"}, placement: {constraints: [node.role==worker]}}
networks: {front: {}, back: {}}
volumes: {vol: {}}
configs: {c: {external: true}}
"""
OVER = """\
services:
  web:
    command: run it
    environment: {B: 3, C: 4}
    ports: ["81:81", "82:82/udp"]
    volumes: ["other:/data:ro"]
    dns: [192.0.2.2]
    cap_add: [KILL]
    ulimits: {nofile: 7}
    logging: {options: {max-file: "2"}}
    networks: [back]
    healthcheck: {test: [CMD, new]}
    configs: [{source: c, target: /d}]
    deploy: {replicas: 3, labels: [m=2], placement: {constraints: [node.labels.a==b]}}
  more: {image: app}
volumes: {other: {name: named}}
"""


def merged(*texts: str, **more: Any) -> dict[str, Any]:
    return kit.words(kit.read(*texts, **more)[0])["web"]


def test_the_later_file_is_laid_over_the_earlier() -> None:
    found = merged(BASE, OVER)
    for word, value in {
        "command": ["run", "it"], "environment.A": "1", "environment.B": "3", "environment.C": "4", "labels.x": "1",
        "ports.80:80/tcp": "ingress", "ports.81:81/tcp": "ingress", "ports.82:82/udp": "ingress",
        "volumes./data": "volume named", "volumes./data.read_only": True, "volumes./z": "volume",
        "volumes./conf": "bind /project/x", "dns": ["192.0.2.1", "192.0.2.2"], "cap_add": ["CAP_CHOWN", "CAP_KILL"],
        "ulimits.nofile": "7:7", "logging.options.max-size": "1m", "logging.options.max-file": "2",
        "networks.st_front": ["one", "web"], "networks.st_back": ["web"], "healthcheck.test": ["CMD", "new"],
        "healthcheck.interval": "5s", "configs./d": "c", "configs./c": None, "deploy.replicas": 3,
        "deploy.labels.l": "1", "deploy.labels.m": "2",
        "deploy.placement.constraints": ["node.role==worker", "node.labels.a==b"],
    }.items():  # fmt: skip
        assert found.get(word) == value, word


def test_reset_and_override() -> None:
    over = (
        "services:\n  web:\n    ports: !reset []\n    environment: !override {ONLY: 1}\n    cap_add: !override [KILL]\n"
        "    labels: {x: !reset null}\n    deploy: {replicas: !reset null}\n"
    )
    found = merged(BASE, over)
    assert not any(word.startswith("ports.") for word in found)
    assert {w for w in found if w.startswith("environment.")} == {"environment.ONLY"}
    assert found["cap_add"] == ["CAP_KILL"] and "labels.x" not in found and found["deploy.replicas"] == 1


def test_another_log_driver_replaces() -> None:
    found = merged(BASE, "services: {web: {logging: {driver: local}}}")
    assert found["logging.driver"] == "local" and "logging.options.max-size" not in found


def test_extends_here_and_elsewhere() -> None:
    text = """\
services:
  web:
    extends: {file: common/base.yml, service: middle}
    environment: {LEVEL: web}
  local: {extends: web}
"""
    common = """\
services:
  middle:
    extends: bottom
    environment: {FROM: middle, LEVEL: middle}
    volumes: ["./here:/here"]
    env_file: vars.env
  bottom: {image: "app:${TAG}", command: [x], profiles: [none]}
"""
    files = {"/project/common/base.yml": common, "/project/common/vars.env": "V=1\n"}
    project, _ = kit.read(text, files=files, env={"TAG": "7"})
    for name in ("web", "local"):
        found = kit.words(project)[name]
        assert found["image"] == "app:7" and found["command"] == ["x"] and found["environment.V"] == "1"
        assert found["environment.LEVEL"] == "web" and found["environment.FROM"] == "middle"
        assert found["volumes./here"] == "bind /project/common/here"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: {a: {extends: b}, b: {extends: a}}", "extend each other in a circle: a -> b -> a"),
        ("services: {a: {image: x, extends: nosuch}}", "there is no service nosuch in these files"),
        (
            "services: {a: {image: x, extends: {file: no.yml, service: b}}}",
            "/project/no.yml cannot be read: no such file",
        ),
        ("services: {a: {image: x, extends: {srvice: b}}}", "services.a.extends.srvice: unknown key"),
        ("include: [no.yml]\nservices: {a: {image: x}}", "include[0]: /project/no.yml cannot be read"),
        ("include: {a: b}\nservices: {a: {image: x}}", "include: a list of files belongs here"),
        ("include: [{paht: x}]\nservices: {a: {image: x}}", "include[0].paht: unknown key; include has path"),
        ("services: {a: {image: x, profiles: p}}", "services.a.profiles: a list of names belongs here"),
    ],
)
def test_mistakes(text: str, words: str) -> None:
    assert words in "\n".join(kit.refused(text))


def test_include_brings_a_project_with_its_own_folder_and_variables() -> None:
    text = "include: [sub/db.yml, {path: other.yml, env_file: o.env}]\nservices: {web: {image: app, depends_on: [db]}}"
    files = {
        "/project/sub/db.yml": "services: {db: {image: 'db:$TAG', volumes: ['./d:/d']}}\nnetworks: {default: {internal: true}}",
        "/project/sub/.env": "TAG=9\n",
        "/project/other.yml": "services: {third: {image: 'x:$TAG'}}",
        "/project/o.env": "TAG=5\n",
    }
    project, _ = kit.read(text, files=files)
    found = kit.words(project)
    assert found["db"]["image"] == "db:9" and found["db"]["volumes./d"] == "bind /project/sub/d"
    assert found["third"]["image"] == "x:5" and project.networks["default"].internal
    clash = "include: [sub/db.yml]\nservices: {db: {image: other}}"
    with pytest.raises(
        ComposeError, match=r"services\.db: also defined in the included /project/sub/db\.yml:1:12"
    ):
        kit.read(clash, files=files)
    endless = {"/project/compose.yml": "include: [compose.yml]\nservices: {a: {image: x}}"}
    with pytest.raises(ComposeError, match="include each other without end"):
        kit.read(endless["/project/compose.yml"], files=endless)


def test_profiles() -> None:
    text = "services:\n  web: {image: a}\n  debug: {image: b, profiles: [dev, test]}\n  ops: {image: c, profiles: [ops]}\n"
    assert kit.read(text)[0].services.keys() == {"web"}
    assert kit.read(text, profiles=["test"])[0].services.keys() == {"web", "debug"}
    assert kit.read(text, profiles=["*"])[0].services.keys() == {"web", "debug", "ops"}
    [error] = kit.refused(text + "  needs: {image: d, depends_on: [ops]}\n")
    assert "services.needs.depends_on.ops: the service ops is not deployed; add --profile ops" in error


def test_home_and_absolute_paths_stay() -> None:
    text = "services: {web: {image: a, volumes: ['~/x:/x', '/abs:/abs', 'C:\\data:D:\\data', '../up:/up']}}"
    found = kit.words(kit.read(text, env={"HOME": "/home/u"})[0])["web"]
    assert found["volumes./x"] == "bind /home/u/x" and found["volumes./abs"] == "bind /abs"
    assert found["volumes.D:\\data"] == "bind C:\\data" and found["volumes./up"] == "bind /up"
