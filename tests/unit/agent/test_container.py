"""From a task's spec to the container its runtime makes."""

from __future__ import annotations

import pytest

from overlace.agent.container import plan_container
from overlace.model.errors import InvalidArgument
from overlace.model.objects import Config, Secret, Task
from overlace.model.specs import (
    BindOptions,
    ConfigReference,
    ConfigSpec,
    ContainerSpec,
    DnsConfig,
    Driver,
    FileTarget,
    Mount,
    SecretReference,
    SecretSpec,
    TaskSpec,
    TmpfsOptions,
    VolumeOptions,
)
from overlace.model.template import Context
from overlace.network.base import TaskNetwork
from overlace.runtime import base

CONTEXT = Context(
    service_id="s", service_name="web", node_id="n", node_hostname="one", node_os="linux",
    node_architecture="x86_64", task_id="t", task_name="web.1.t", task_slot=1,
)  # fmt: skip


def planned(log_driver: Driver | None = None, **container: object) -> base.ContainerConfig:
    spec = TaskSpec(container_spec=ContainerSpec(image="web:1", **container), log_driver=log_driver)  # type: ignore[arg-type]
    task = Task(id="t", service_id="s", slot=1, spec=spec, name="web.1.t", service_name="web")
    return plan_container(task, CONTEXT, "n", {}, {}, "/run/netns/t", "")


def test_mounts_say_what_was_asked_for() -> None:
    config = planned(
        mounts=[
            Mount("volume", "data-{{.Task.Slot}}", "/data", volume_options=VolumeOptions(no_copy=True)),
            Mount("volume", "", "/own"),
            Mount("bind", "/srv", "/srv", read_only=True, bind_options=BindOptions(create_mountpoint=True)),
        ]
    )
    assert config.mounts == (
        base.Mount("volume", "/data", source="data-1", no_copy=True),
        base.Mount("volume", "/own"),
        base.Mount("bind", "/srv", source="/srv", read_only=True, create_source=True),
    )


def test_log_options_reach_the_runtime_as_numbers() -> None:
    config = planned(Driver("json-file", {"max-size": "1m", "max-file": "4"}))
    assert (config.log_max_size, config.log_max_files) == (1_000_000, 4)
    assert (planned().log_max_size, planned().log_max_files) == (0, 0)


def test_options_of_mounts_reach_the_runtime() -> None:
    config = planned(
        mounts=[
            Mount(
                "volume",
                "nas",
                "/v",
                volume_options=VolumeOptions(
                    labels={"task": "{{.Task.Slot}}"},
                    subpath="in",
                    driver_config=Driver("local", {"type": "nfs", "device": ":/{{.Service.Name}}"}),
                ),
            ),
            Mount(
                "bind",
                "/s",
                "/a",
                read_only=True,
                bind_options=BindOptions(propagation="rprivate", read_only_force_recursive=True),
            ),
            Mount("bind", "/s", "/b", bind_options=BindOptions(non_recursive=True)),
            Mount("tmpfs", "", "/t", tmpfs_options=TmpfsOptions(size_bytes=9, options=[["exec"]])),
        ]
    )
    assert config.mounts == (
        base.Mount(
            "volume",
            "/v",
            source="nas",
            subpath="in",
            volume_labels={"task": "1"},
            volume_options={"type": "nfs", "device": ":/web"},
        ),
        base.Mount("bind", "/a", source="/s", read_only=True, recursive_read_only="must"),
        base.Mount("bind", "/b", source="/s", recursive=False),
        base.Mount("tmpfs", "/t", tmpfs_size=9, tmpfs_exec=True),
    )


def test_log_drivers_reach_the_runtime() -> None:
    local = planned(Driver("local"))
    assert (local.log_driver, local.log_max_size, local.log_max_files) == ("local", 20_000_000, 5)
    assert planned(Driver("none")).log_driver == "none"


def test_own_nameservers_do_not_displace_the_names_of_services() -> None:
    """Listed beside 127.0.0.11 they were asked only when it did not answer at all; the resolver asks them now."""
    given = "nameserver 127.0.0.11\nsearch host.lan\noptions ndots:0\n"
    spec = ContainerSpec(image="web:1", dns_config=DnsConfig(["10.9.9.9"], ["lan"], ["ndots:2"]))
    task = Task(id="t", service_id="s", slot=1, spec=TaskSpec(container_spec=spec), name="web.1.t")
    made = plan_container(task, CONTEXT, "n", {}, {}, "", given).resolv_conf
    assert made == "nameserver 127.0.0.11\noptions ndots:2\nsearch lan\n"
    assert TaskNetwork.of(task, ()).nameservers == ("10.9.9.9",)


def files(data: bytes, kind: str, template: bool = True, **container: object) -> tuple[base.FileMount, ...]:
    """The files of a task with a secret `key` (s3) and `data` as a templated secret or config, the last of them."""
    driver = Driver("golang") if template else None
    key = Secret(id="key", spec=SecretSpec(name="key", data=b"s3"))
    refs = [SecretReference("key", "key", FileTarget("key"))]
    configs, config_refs = {}, []
    secrets = {"key": key}
    if kind == "config":
        configs["it"] = Config(id="it", spec=ConfigSpec(name="it", data=data, templating=driver))
        config_refs.append(ConfigReference("it", "it", FileTarget("/it", uid="7", mode=0o400)))
    else:
        secrets["it"] = Secret(id="it", spec=SecretSpec(name="it", data=data, templating=driver))
        refs.append(SecretReference("it", "it", FileTarget("it")))
    spec = ContainerSpec(image="web:1", secrets=refs, configs=config_refs, **container)  # type: ignore[arg-type]
    task = Task(id="t", service_id="s", slot=1, spec=TaskSpec(container_spec=spec), name="web.1.t")
    return plan_container(task, CONTEXT, "n", secrets, configs, "", "").files


def test_templates_of_secrets_and_configs() -> None:
    made = files(b'{{.Task.Slot}} {{env "A"}}{{env "B"}}', "config", env=["A={{.Node.ID}}"])[-1]
    assert (made.data, made.target, made.uid, made.mode, made.secret) == (b"1 n", "/it", 7, 0o400, False)
    made = files(b'\xff{{secret "key"}}', "config")[-1]
    assert made.data == b"\xffs3" and made.secret, "what holds a secret's words is kept like one"
    assert files(b'{{secret "key"}}!', "secret")[-1].data == b"s3!"
    assert files(b'{{secret "key"}}', "secret", template=False)[-1].data == b'{{secret "key"}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{{secret "nosuch"}}', "secret target nosuch not found"),
        (b'{{config "nosuch"}}', "config target nosuch not found"),
        (b"{{.Nosuch}}", "can't evaluate field Nosuch"),
        (b'{{env "A" "B"}}', "env takes one name"),
        (b"{{shell `id`}}", 'function "shell" not defined'),
    ],
)
def test_a_template_that_does_not_expand_says_whose_it_is(text: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match="failed to expand templated config it: template: ") as caught:
        files(text, "config")
    assert said in caught.value.message
