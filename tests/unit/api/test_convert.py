"""Documents have the members docker's clients read, with Go's absences."""

from __future__ import annotations

import msgspec
import pytest

from overlace.api.codec import decode
from overlace.api.convert.common import Rendered, document
from overlace.api.convert.container import human_duration, merge_env, status_text
from overlace.api.convert.files import secret as show_secret
from overlace.api.convert.node import node as show_node
from overlace.api.convert.service import service as show_service
from overlace.api.convert.service import service_status
from overlace.api.convert.task import task as show_task
from overlace.model.objects import (
    JobStatus,
    Network,
    NetworkAttachment,
    NodeStatus,
    Secret,
    Service,
    Subnet,
    Task,
    TaskStatus,
)
from overlace.model.specs import (
    ContainerSpec,
    GlobalJob,
    GlobalService,
    NetworkSpec,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    RestartPolicy,
    SecretSpec,
    ServiceMode,
    ServiceSpec,
    SwarmSpec,
    TaskSpec,
    UpdateConfig,
)
from overlace.model.states import NodeState, TaskState

from .doubles import NODE, NOW, WINDOWS_NODE, container, node

SPEC = ServiceSpec(
    name="web",
    task_template=TaskSpec(
        container_spec=ContainerSpec(image="web:1", stop_grace_period=0), restart_policy=RestartPolicy()
    ),
    mode=ServiceMode(replicated=ReplicatedService(0)),
    update_config=UpdateConfig(parallelism=0),
)


def test_a_spec_read_back_is_the_spec() -> None:
    """Clients read, change one thing and post the whole document: nothing may be lost on the way."""
    assert decode(msgspec.json.encode(document(SPEC)), ServiceSpec) == SPEC
    assert decode(msgspec.json.encode(document(SwarmSpec())), SwarmSpec) == SwarmSpec()


def test_zeros_that_mean_something_are_shown() -> None:
    shown = document(SPEC)
    assert shown["Mode"] == {"Replicated": {"Replicas": 0}}
    assert shown["TaskTemplate"]["ContainerSpec"] == {"Image": "web:1", "StopGracePeriod": 0}
    assert shown["TaskTemplate"]["RestartPolicy"] == {"Condition": "any"}
    assert shown["UpdateConfig"] == {"Parallelism": 0, "MaxFailureRatio": 0.0, "Order": ""}
    assert shown["Labels"] == {}
    assert document(PortConfig(target_port=80)) == {
        "Protocol": "tcp",
        "TargetPort": 80,
        "PublishMode": "ingress",
    }


def test_defaults_are_inserted_only_when_asked() -> None:
    plain = Service(id="s", spec=SPEC)
    assert "RollbackConfig" not in show_service(plain)["Spec"]
    full = show_service(plain, defaults=True)["Spec"]
    assert full["UpdateConfig"]["Parallelism"] == 0  # given: not replaced
    assert full["UpdateConfig"]["Order"] == "stop-first"
    assert full["RollbackConfig"]["Parallelism"] == 1
    assert full["EndpointSpec"] == {"Mode": "vip"}
    assert full["TaskTemplate"]["RestartPolicy"] == {
        "Condition": "any",
        "Delay": 5_000_000_000,
        "MaxAttempts": 0,
    }


def test_a_secret_never_shows_its_data() -> None:
    shown = show_secret(Secret(id="s", spec=SecretSpec(name="s1", data=b"hush")))
    assert "hush" not in str(shown) and "Data" not in shown["Spec"]


def test_the_windows_build_and_emulation_are_visible() -> None:
    shown = show_node(node(WINDOWS_NODE, "win", "windows", False), "")
    assert shown["Description"]["Platform"] == {
        "Architecture": "x86_64",
        "OS": "windows",
        "OSVersion": "10.0.20348.2527",
    }
    labels = shown["Description"]["Engine"]["Labels"]
    assert labels == {"com.overlace.emulated": "windows", "com.overlace.os-version": "10.0.20348.2527"}
    assert "ManagerStatus" not in shown
    real = show_node(node(), "")
    assert real["Description"]["Engine"]["Labels"] == {}
    assert real["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "172.28.1.11:2377"}


def test_a_task_shows_its_whole_networks() -> None:
    network = Network(
        id="net", spec=NetworkSpec(name="shop"), vni=4100, subnets=(Subnet("10.0.9.0/24", "10.0.9.1"),)
    )
    task = Task(
        id="t",
        created_at=NOW,
        service_id="s",
        slot=1,
        spec=TaskSpec(),
        networks=(NetworkAttachment("net", ("10.0.9.3/24",)), NetworkAttachment("gone", ("10.0.8.3/24",))),
        status=TaskStatus(TaskState.PENDING, err="no suitable node (unsupported platform on 2 nodes)"),
    )
    shown = show_task(task, {"net": network})
    first, second = shown["NetworksAttachments"]
    assert first["Network"]["DriverState"]["Options"] == {
        "com.docker.network.driver.overlay.vxlanid_list": "4100"
    }
    assert first["Addresses"] == ["10.0.9.3/24"] and second["Network"] == {"ID": "gone"}
    assert shown["Status"]["State"] == "pending" and shown["DesiredState"] == "running"
    assert shown["Status"]["Err"].startswith("no suitable node")
    assert shown["Status"]["Timestamp"] == shown["CreatedAt"]  # never Go's year 1


def make(
    state: TaskState, desired: TaskState = TaskState.RUNNING, node_id: str = NODE, slot: int = 1
) -> Task:
    return Task(
        id=f"t{slot}", service_id="s", spec=TaskSpec(), slot=slot, node_id=node_id, desired_state=desired,
        status=TaskStatus(state),
    )  # fmt: skip


def test_counts_of_service_ls() -> None:
    live = frozenset({NODE})
    replicated = Service(id="s", spec=ServiceSpec(mode=ServiceMode(replicated=ReplicatedService(3))))
    tasks = [
        make(TaskState.RUNNING),
        make(TaskState.STARTING),
        make(TaskState.RUNNING, desired=TaskState.SHUTDOWN),  # on its way out
        make(TaskState.RUNNING, node_id="down"),  # nobody knows
    ]
    assert service_status(replicated, tasks, live) == {
        "RunningTasks": 1,
        "DesiredTasks": 3,
        "CompletedTasks": 0,
    }
    everywhere = Service(id="s", spec=ServiceSpec(mode=ServiceMode(global_=GlobalService())))
    assert service_status(everywhere, tasks, live)["DesiredTasks"] == 3


def test_counts_of_jobs() -> None:
    live = frozenset({NODE, "two"})
    job = Service(
        id="s",
        spec=ServiceSpec(mode=ServiceMode(replicated_job=ReplicatedJob(2, 3))),
        job_status=JobStatus(1),
    )

    def of(state: TaskState, slot: int, iteration: int = 1, node_id: str = NODE) -> Task:
        made = make(state, TaskState.COMPLETE, node_id, slot)
        return msgspec.structs.replace(made, job_iteration=iteration)

    tasks = [
        of(TaskState.COMPLETE, 0),
        of(TaskState.COMPLETE, 1),
        of(TaskState.RUNNING, 2),
        of(TaskState.COMPLETE, 2, iteration=0),  # of an earlier run
    ]
    assert service_status(job, tasks, live) == {
        "RunningTasks": 1,
        "DesiredTasks": 2,  # as many at once, as Docker says until the end
        "CompletedTasks": 2,
    }
    everywhere = msgspec.structs.replace(job, spec=ServiceSpec(mode=ServiceMode(global_job=GlobalJob())))
    tasks = [of(TaskState.COMPLETE, 0), of(TaskState.RUNNING, 0, node_id="two")]
    assert service_status(everywhere, tasks, live) == {
        "RunningTasks": 1,
        "DesiredTasks": 1,  # the CLI adds what is completed
        "CompletedTasks": 1,
    }
    assert show_task(tasks[0], {})["JobIteration"] == {"Index": 1}
    assert show_task(of(TaskState.RUNNING, 0, 0), {})["JobIteration"] == {}
    assert "JobIteration" not in show_task(make(TaskState.RUNNING), {})


def test_documents_are_made_once_per_version() -> None:
    made = []
    rendered = Rendered(sweep_at=2)
    first = Service(id="s", spec=SPEC)

    def show(thing: Service) -> bytes:
        return bytes(
            rendered.get("service", thing.id, (thing,), lambda: made.append(thing) or {"N": len(made)})
        )

    assert show(first) == show(first) == b'{"N":1}'
    assert show(msgspec.structs.replace(first, version=2)) == b'{"N":2}'
    for i in range(10):  # what is not asked for any more does not stay
        show(Service(id=str(i), spec=SPEC))
    assert len(rendered) <= 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (150, "2 minutes"),
        (3700, "About an hour"),
        (47 * 3600, "47 hours"),
        (49 * 3600, "2 days"),
        (15 * 86400, "2 weeks"),
        (65 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_as_docker_ps_says_them(seconds: int, text: str) -> None:
    assert human_duration(seconds * 10**9) == text


def test_status_of_docker_ps() -> None:
    running = container(started_at=NOW, health="healthy")
    assert status_text(running, NOW + 3 * 10**9) == "Up 3 seconds (healthy)"
    ended = container(status="exited", exit_code=137, finished_at=NOW)
    assert status_text(ended, NOW + 120 * 10**9) == "Exited (137) 2 minutes ago"


def test_environment_is_the_images_with_the_containers_own() -> None:
    assert merge_env(["PATH=/bin", "A=1"], ["A=2"]) == ["A=2", "PATH=/bin"]


def test_a_node_in_trouble_says_so_where_people_look() -> None:
    one = node()
    assert one.description is not None and "Message" not in show_node(one, "")["Status"]
    full = msgspec.structs.replace(one.description, trouble="its disk is full")
    troubled = msgspec.structs.replace(one, description=full)
    assert show_node(troubled, "")["Status"]["Message"] == "its disk is full"
    down = NodeStatus(NodeState.DOWN, "heartbeat failure")
    assert (
        show_node(msgspec.structs.replace(troubled, status=down), "")["Status"]["Message"]
        == "heartbeat failure"
    )
