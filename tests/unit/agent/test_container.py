"""From a task's spec to the container its runtime makes."""

from __future__ import annotations

from overlace.agent.container import plan_container
from overlace.model.objects import Task
from overlace.model.specs import BindOptions, ContainerSpec, Driver, Mount, TaskSpec, VolumeOptions
from overlace.model.template import Context
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
