"""`docker secret` and `docker config`: made, given to containers as files, kept while they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]


@pytest.mark.parametrize("kind", ["secret", "config"])
def test_create_ls_inspect_rm(docker: Docker, swarm: Swarm, kind: str) -> None:
    id = docker(kind, "create", "--label", "a=b", "mine", "-", stdin="content\n")
    assert len(id) == 25
    assert docker(kind, "ls", "--format", "{{.ID}} {{.Name}}") == f"{id} mine"
    assert (
        docker(kind, "ls", "-q", "-f", "label=a=b") == id
        and docker(kind, "ls", "-q", "-f", "name=nosuch") == ""
    )
    found = docker.one(kind, "inspect", "mine")
    assert found["ID"] == id and found["Spec"]["Labels"] == {"a": "b"}
    if kind == "secret":
        assert "Data" not in found["Spec"], "a secret's content is never given back"
    else:
        assert "content" in docker(kind, "inspect", "--pretty", "mine")
    said = docker.refused(kind, "create", "mine", "-", stdin="other")
    assert f"{kind} mine already exists" in said
    assert docker(kind, "rm", "mine") == "mine"
    docker.refused(kind, "inspect", "mine")
    assert swarm.refusal("DELETE", f"/{kind}s/mine") == (404, f"{kind} mine not found")


@pytest.mark.parametrize(("kind", "limit"), [("secret", 512000), ("config", 1024000)])
def test_sizes_and_names(docker: Docker, swarm: Swarm, kind: str, limit: int) -> None:
    words = f"{kind} data must be larger than 0 and less than {limit} bytes"
    docker.refused(kind, "create", "empty", "-", stdin="")  # newer CLIs do not even ask
    answer = swarm.refusal("POST", f"/{kind}s/create", {"Name": "empty", "Data": ""})
    assert answer.status == 400 and words in answer.message
    assert words in docker.refused(kind, "create", "large", "-", stdin="x" * limit)
    docker(kind, "create", "fits", "-", stdin="x" * (limit - 1))
    assert "only 64 [a-zA-Z0-9-_.] characters allowed" in docker.refused(
        kind, "create", "bad name", "-", stdin="x"
    )
    found = swarm.get(f"/{kind}s/fits")
    changed = found["Spec"] | {"Data": "eA=="}
    answer = swarm.refusal(
        "POST", f"/{kind}s/{found['ID']}/update?version={found['Version']['Index']}", changed
    )
    assert answer.status == 400 and "only updates to Labels are allowed" in answer.message
    assert [one["Spec"]["Name"] for one in swarm.get(f"/{kind}s")] == ["fits"]


def test_templates_in_secrets_and_configs(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("secret", "create", "password", "-", stdin="s3cr3t")
    docker("config", "create", "plain", "-", stdin="as it is: {{.Node.Hostname}}")
    docker(
        *("config", "create", "--template-driver", "golang", "url", "-"),
        stdin="{{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}} "
        '{{env "USER"}}:{{secret "password"}} {{config "/plain"}}',
    )
    docker(
        *("secret", "create", "--template-driver", "golang", "token", "-"),
        stdin="{{.Service.Labels.team}}-{{.Task.ID}}",
    )
    docker(
        *("service", "create", "-d", "--name", "reads", "--label", "team=red"),
        *("-e", "USER=me{{.Task.Slot}}", "--secret", "password", "--secret", "token"),
        *("--config", "source=plain,target=/plain", "--config", "source=url,target=/url"),
        image("app:1"),
    )
    [task] = swarm.running("reads")
    node = swarm.host_of(task)
    assert swarm.inside(task, "cat /url") == f"reads.1@{node} me1:s3cr3t as it is: {{{{.Node.Hostname}}}}"
    assert swarm.inside(task, "cat /run/secrets/token") == f"red-{task['ID']}"
    mounts = swarm.inside(task, "grep -E ' /(url|plain) ' /proc/mounts").splitlines()
    kinds = {line.split()[1]: line.split()[2] for line in mounts}
    assert kinds["/url"] == "tmpfs" != kinds["/plain"], "what holds a secret never touches a disk"

    docker("config", "create", "--template-driver", "golang", "wrong", "-", stdin='{{secret "nosuch"}}')
    docker("service", "create", "-d", "--name", "fails", "--config", "wrong", image("app:1"))
    swarm.pending("fails", "failed to expand templated config wrong")
    swarm.pending("fails", "secret target nosuch not found")
    said = docker.refused("config", "create", "--template-driver", "jinja", "x", "-", stdin="x")
    assert 'there is no template driver "jinja"; use golang' in said


def test_files_in_the_container(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("secret", "create", "key", "-", stdin="s3cr3t")
    docker("config", "create", "settings", "-", stdin="a = 1\n")
    docker(
        *("service", "create", "-d", "--name", "reads"),
        *("--secret", "key", "--secret", "source=key,target=other,mode=0400,uid=7,gid=8"),
        *("--secret", "source=key,target=/deep/down/key"),
        *("--config", "settings", "--config", "source=settings,target=/etc/app/settings.ini,mode=0640"),
        image("app:1"),
    )
    [task] = swarm.running("reads")
    assert swarm.inside(task, "cat /run/secrets/key /run/secrets/other /deep/down/key") == "s3cr3t" * 3
    assert swarm.inside(task, "stat -c '%a %u %g' /run/secrets/key /run/secrets/other").splitlines() == [
        "444 0 0",
        "400 7 8",
    ]
    assert swarm.inside(task, "cat /settings /etc/app/settings.ini") == "a = 1\na = 1"
    assert swarm.inside(task, "stat -c %a /etc/app/settings.ini") == "640"
    mounts = swarm.inside(task, "grep -E '/run/secrets|/deep' /proc/mounts").splitlines()
    assert len(mounts) == 2 and all(line.split()[2] == "tmpfs" for line in mounts), (
        "secrets never touch a disk"
    )
    assert "Read-only" in swarm.inside(task, "echo x > /run/secrets/key", check=False)
    assert "s3cr3t" not in json.dumps(swarm.inspect(task)), "nor an inspect"

    for kind, name in (("secret", "key"), ("config", "settings")):
        said = docker.refused(kind, "rm", name)
        assert f"{kind} '{name}' is in use by the following service: reads" in said
    docker(
        "service",
        "update",
        "-d",
        "--secret-rm",
        "key",
        "--config-rm",
        "settings",
        "--update-monitor",
        "300ms",
        "reads",
    )
    host = swarm.lab.host(swarm.host_of(task))
    container = task["Status"]["ContainerStatus"]["ContainerID"]
    secrets = Path(host.exec_root, "bundles", container, "secrets")
    configs = Path(host.data_root, "containers", container, "files")
    assert secrets.exists() and configs.exists()
    swarm.updated("reads")
    eventually(
        lambda: not secrets.exists() and not configs.exists(), "they go with the last task that needs them"
    )
    assert configs.parent.exists(), "its container is still there, for its log"
    docker("secret", "rm", "key")
    docker("config", "rm", "settings")


def test_on_a_windows_host(docker: Docker, swarm: Swarm, image: Image) -> None:
    """Windows has no tmpfs: what an emulated host does is like Linux, at the place Windows uses."""
    docker("secret", "create", "winkey", "-", stdin="w1n")
    docker("service", "create", "-d", "--name", "winreads", "--secret", "winkey", image("win:1"))
    [task] = swarm.running("winreads")
    assert swarm.host_of(task) == "windows-1"
    said = swarm.inside(
        task, "find / -name winkey -not -path '/proc/*' -exec cat {} ';' 2>/dev/null", check=False
    )
    assert "w1n" in said
