"""Compose files as people write them, from version 3.0 to the current specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from . import kit

FILES = Path(__file__).with_name("files")
NAMES = sorted(path.name for path in FILES.glob("*.yml"))
IMAGE = "registry.example/app:1"

# file -> {service: {word: value}}; None: the word is not there
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "v3.0-wordpress.yml": {
        "blog": {
            "image": IMAGE, "environment.BLOG_DB_HOST": "db:3306", "environment.BLOG_DEBUG": "true",
            "ports.22:22/tcp": "ingress", "ports.8000:80/tcp": "ingress", "deploy.replicas": 2,
            "networks.st_default": ["blog"], "deploy.labels.com.docker.stack.image": IMAGE,
            "deploy.labels.com.docker.stack.namespace": "st", "labels.com.docker.stack.namespace": "st",
        },
        "db": {
            "volumes./var/lib/mysql": "volume st_db-data", "deploy.replicas": 1,
            "deploy.placement.constraints": ["node.role == manager"], "environment.MYSQL_DATABASE": "blog",
        },
    },
    "v3.1-voting.yml": {
        "queue": {
            "ports.6379/tcp": "ingress", "deploy.update_config.parallelism": 2, "deploy.update_config.delay": "10s",
            "deploy.restart_policy.condition": "on-failure", "networks.st_frontend": ["queue"],
        },
        "vote": {
            "ports.5000:80/tcp": "ingress", "deploy.restart_policy.max_attempts": 3,
            "deploy.restart_policy.window": "2m", "deploy.restart_policy.delay": "10s",
        },
        "worker": {"secrets.worker-token": "st_worker-token", "deploy.labels.APP": "VOTING"},
        "visualizer": {
            "stop_grace_period": "1m30s", "volumes./var/run/docker.sock": "bind /var/run/docker.sock",
            "networks.st_default": ["visualizer"],
        },
    },
    "v3.2-long-ports.yml": {
        "edge": {
            "ports.8080:80/tcp": "host", "ports.4001:5001/udp": "ingress", "ports.7001/tcp": "ingress",
            "volumes./cache": "volume st_cache", "volumes./cache.volume.NoCopy": True,
            "volumes./static": "bind /project/static", "volumes./static.read_only": True,
            "volumes./relative": "bind /project/relative", "volumes./anonymous": "volume",
            "deploy.mode": "global", "deploy.replicas": None,
        },
    },
    "v3.3-configs.yml": {
        "proxy": {
            "configs.proxy.conf": "st_proxy.conf", "configs./etc/site.conf": "st_site",
            "configs./etc/site.conf.uid": "103", "configs./etc/site.conf.mode": "0o440",
            "secrets.api-token": "st_token", "secrets.api-token.mode": "0o400", "deploy.endpoint_mode": "dnsrr",
            "deploy.placement.preferences": ["spread=node.labels.zone"],
        },
    },
    "v3.4-anchors.yml": {
        "one": {
            "environment.LANG": "en_US.UTF-8", "environment.NAME": "one", "logging.options.max-file": "3",
            "deploy.update_config.order": "start-first", "deploy.update_config.max_failure_ratio": 0.25,
            "deploy.update_config.failure_action": "rollback", "deploy.update_config.monitor": "20s",
        },
        "two": {
            "environment.LANG": "C", "environment.TZ": "UTC", "environment.NAME": "two", "deploy.replicas": 3,
            "deploy.update_config.order": "start-first", "logging.driver": "json-file",
        },
    },
    "v3.5-names.yml": {
        "app": {
            "networks.shared-inside-net": ["application", "app.internal", "app"], "networks.st_outside": ["app"],
            "volumes./store": "volume store-{{.Task.Slot}}", "volumes./store.volume.Labels.keep": "yes",
            "configs.settings": "settings-v1", "isolation": None,
        },
    },
    "v3.6-tmpfs.yml": {
        "scratch": {
            "command": ["sh", "-c", "echo $HOME && exec sleep '1000'"], "entrypoint": ["/bin/busybox"],
            "volumes./tmp": "tmpfs", "volumes./tmp.tmpfs.SizeBytes": 10_000_000, "read_only": True,
            "user": "1000:1000", "working_dir": "/tmp", "hostname": "{{.Node.Hostname}}-{{.Task.Slot}}",
            "stdin_open": True, "tty": True, "stop_signal": "SIGQUIT", "labels.com.example.number": "1",
            "labels.com.example.empty": '""', "healthcheck.interval": "1m30s", "healthcheck.start_period": "40s",
            "healthcheck.retries": 3, "healthcheck.test": ["CMD-SHELL", "test -d /tmp || exit 1"],
        },
    },
    "v3.7-init.yml": {
        "a": {
            "init": True, "dns": ["192.0.2.1", "192.0.2.2"], "dns_search": ["example.org"],
            "extra_hosts": ["192.0.2.82 somehost", "192.0.2.50 other"], "ulimits.nproc": "65535:65535",
            "ulimits.nofile": "20000:40000", "healthcheck.test": ["NONE"], "deploy.rollback_config.parallelism": 0,
            "deploy.rollback_config.delay": "5s", "deploy.resources.limits.cpus": "0.5",
            "deploy.resources.limits.memory": "50m", "deploy.resources.reservations.memory": "20m",
        },
    },
    "v3.8-limits.yml": {
        "web": {
            "cap_add": ["CAP_NET_ADMIN", "CAP_SYS_TIME"], "cap_drop": ["ALL"],
            "sysctls.net.core.somaxconn": "1024", "sysctls.net.ipv4.tcp_syncookies": "0",
            "deploy.placement.max_replicas_per_node": 1, "environment.HOST_ONLY": "here",
            # what Go's YAML makes of them, as the docker CLI does
            "environment.PORT": "8080", "environment.RATE": "1.5", "environment.OCTAL": "493",
            "environment.TIME": "12:30:45", "environment.SURE": "yes", "environment.BIG": "1e+06",
        },
    },
    "v3.9-sysctls.yml": {
        "web": {"sysctls.net.core.somaxconn": "512", "deploy.resources.limits.pids": 100},
    },
    "v3.12-jobs.yml": {
        "batch": {"deploy.mode": "replicated-job", "deploy.replicas": 3, "deploy.max_concurrent": None},
        "once": {"deploy.mode": "global-job", "deploy.replicas": None},
    },
    "v3.13-last.yml": {
        "web": {
            "healthcheck.start_interval": "500ms", "deploy.replicas": 0,
            "healthcheck.test": ["CMD-SHELL", "curl -f http://localhost"],
        },
        "legacy": {"deploy.restart_policy.condition": "on-failure", "deploy.restart_policy.max_attempts": 4},
    },
    "spec-modern.yml": {
        "api": {
            "environment.LEVEL": "debug", "environment.REGION": "eu", "labels.team": "core",
            "ports.8080:80/tcp": "ingress http", "group_add": ["audio", "1001"], "dns_opt": ["ndots:1"],
            "deploy.resources.limits.pids": 50, "privileges.NoNewPrivileges": True,
            "volumes./run": "tmpfs", "volumes./run.tmpfs.SizeBytes": 64 * 1024**2, "volumes./tmp": "tmpfs",
            "environment.FROM_FILE": "1", "environment.QUOTED": '"x y"', "environment.HOST_ONLY": "here",
        },
        "db": {
            "deploy.resources.limits.cpus": "1.5", "deploy.resources.limits.memory": "1g",
            "deploy.resources.reservations.generic_resources": [{"DiscreteResourceSpec": {"Kind": "ssd", "Value": 1}}],
        },
        "migrate": {"deploy.restart_policy.condition": "none"},
    },
}  # fmt: skip


def project(name: str) -> Any:
    files = {f"/project/{path.name}": path.read_text() for path in FILES.iterdir()}
    return kit.read(files[f"/project/{name}"], env={"HOST_ONLY": "here"}, files=files)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_says(name: str) -> None:
    found = kit.words(project(name))
    assert EXPECTED[name].keys() <= found.keys()
    for service, expected in EXPECTED[name].items():
        for word, value in expected.items():
            assert found[service].get(word) == value, f"{service}: {word}"


@pytest.mark.parametrize("name", NAMES)
def test_what_was_deployed_needs_no_change(name: str) -> None:
    found = project(name)
    plan = kit.planned(found)
    assert plan.changes_anything
    actual, choices = kit.deployed(plan)
    again = kit.planned(found, actual, choices)
    assert again.actions == [] and again.notes == []


def test_modern_dependencies() -> None:
    found = project("spec-modern.yml")
    assert "base" not in found.services and "cache" not in found.services, "their profiles are not active"
    conditions = {name: d.condition for name, d in found.services["api"].depends_on.items()}
    assert conditions["db"] == "service_healthy" and conditions["migrate"] == "service_completed_successfully"
    assert kit.planned(found).order[-1] == "api"
    assert found.configs["inline"].content == "a = b\n"
