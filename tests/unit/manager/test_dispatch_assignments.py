"""A node is told of its own tasks only, once, with what they need, and of nothing it said itself."""

from __future__ import annotations

import random

import msgspec
import pytest

from overlace.manager.assignments import NodeAssignments, is_assigned, needs
from overlace.model.objects import Config, Secret, Service, Task, TaskStatus
from overlace.model.specs import (
    ConfigReference,
    ConfigSpec,
    ContainerSpec,
    SecretReference,
    SecretSpec,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import TaskState
from overlace.store.base import Delete, Put
from overlace.store.memory import MemoryStore

replace = msgspec.structs.replace


def task(
    id: str, node: str = "n", state: TaskState = TaskState.ASSIGNED, secrets: str = "", configs: str = ""
) -> Task:
    spec = ContainerSpec(
        secrets=[SecretReference(secret_id=s) for s in secrets],
        configs=[ConfigReference(config_id=c) for c in configs],
    )
    return Task(
        id=id,
        service_id="svc",
        node_id=node,
        spec=TaskSpec(container_spec=spec),
        status=TaskStatus(state=state),
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TaskState.PENDING, False),  # a global service's task names its node before it is assigned
        (TaskState.ASSIGNED, True),
        (TaskState.RUNNING, True),
        (TaskState.FAILED, True),  # its container and logs stay until the task is deleted
        (TaskState.ORPHANED, False),
    ],
)
def test_which_tasks_are_a_nodes(state: TaskState, expected: bool) -> None:
    assert is_assigned(task("t", state=state), "n") is expected
    assert not is_assigned(task("t", state=state), "other")
    assert not is_assigned(None, "n")


async def test_secrets_and_credentials_travel_with_their_first_task_and_go_with_the_last() -> None:
    store = MemoryStore()
    await store.commit(
        [Put(Secret(id="s", spec=SecretSpec(name="s", data=b"1"))),
         Put(Config(id="c", spec=ConfigSpec(name="c", data=b"2"))),
         Put(Service(id="svc", spec=ServiceSpec(name="svc"), registry_auth="auth"))]
    )  # fmt: skip
    told = NodeAssignments("n")
    assert told.complete(store.view()).sequence == 1
    # two tasks with the same secret in one message: it must come once, and come at all
    await store.commit([Put(task("a", secrets="s", configs="c")), Put(task("b", secrets="s"))])
    first = told.delta(store.view(), ["a", "b"])
    assert first is not None and first.sequence == 2 and not first.complete
    assert [t.id for t in first.tasks] == ["a", "b"]
    assert [s.id for s in first.secrets] == ["s"] and [c.id for c in first.configs] == ["c"]
    assert first.registry_auth == {"svc": "auth"}
    await store.commit([Put(task("a", state=TaskState.FAILED, secrets="s", configs="c"))])
    second = told.delta(store.view(), ["a"])
    assert second is not None and second.remove_configs == ("c",) and second.remove_secrets == ()
    assert second.tasks == ()  # the node said itself that it failed
    await store.commit([Delete("task", "b")])
    third = told.delta(store.view(), ["b"])
    assert third is not None and (third.remove_tasks, third.remove_secrets) == (("b",), ("s",))
    assert told.delta(store.view(), ["a", "b", "never"]) is None


async def test_an_agents_own_report_is_no_news_but_a_wish_is() -> None:
    store = MemoryStore()
    t = task("t")
    await store.commit([Put(t)])
    told = NodeAssignments("n")
    told.complete(store.view())
    await store.commit([Put(replace(t, status=TaskStatus(TaskState.RUNNING, 5)))])
    assert told.delta(store.view(), ["t"]) is None
    await store.commit([Put(replace(t, desired_state=TaskState.SHUTDOWN))])
    message = told.delta(store.view(), ["t"])
    assert message is not None and message.sequence == 2
    await store.commit([Put(replace(t, node_id="elsewhere"))])
    message = told.delta(store.view(), ["t"])
    assert message is not None and message.remove_tasks == ("t",)


async def test_changed_credentials_are_sent_even_when_they_became_empty() -> None:
    store = MemoryStore()
    await store.commit([Put(task("t")), Put(Service(id="svc", spec=ServiceSpec(name="svc")))])
    told = NodeAssignments("n")
    assert told.complete(store.view()).registry_auth == {}
    message = told.delta(store.view(), [], ["svc"])
    assert message is not None and message.registry_auth == {"svc": ""}


async def test_deltas_add_up_to_the_complete_message() -> None:
    """Random histories: an agent that applies every message holds exactly what a fresh session would be told."""
    for seed in range(40):
        rng = random.Random(seed)
        store = MemoryStore()
        await store.commit(
            [Put(Secret(id=i, spec=SecretSpec(name=i))) for i in "xyz"]
            + [Put(Config(id=i, spec=ConfigSpec(name=i))) for i in "xyz"]
        )
        told = NodeAssignments("n")
        told.complete(store.view())
        tasks, secrets, configs = set(), set(), set()
        for _ in range(60):
            dirty = set()
            for _ in range(rng.choice((1, 3))):
                id = f"t{rng.randrange(5)}"
                dirty.add(id)
                state = rng.choice(list(TaskState))
                some = "".join(rng.sample("xyz", rng.randrange(3)))
                change = Put(task(id, rng.choice("nm"), state, some, some[:1]))
                await store.commit([Delete("task", id) if rng.random() < 0.2 else change])
            message = told.delta(store.view(), sorted(dirty))
            if message is not None:
                tasks = (tasks | {t.id for t in message.tasks}) - set(message.remove_tasks)
                assert not secrets & {s.id for s in message.secrets}  # never twice
                secrets = (secrets | {s.id for s in message.secrets}) - set(message.remove_secrets)
                configs = (configs | {c.id for c in message.configs}) - set(message.remove_configs)
            whole = NodeAssignments("n").complete(store.view())
            assert tasks == {t.id for t in whole.tasks}
            assert secrets == {s.id for s in whole.secrets}
            assert configs == {c.id for c in whole.configs}


def test_an_ended_task_needs_nothing() -> None:
    assert needs(task("t", secrets="s", configs="c")) == (frozenset("s"), frozenset("c"))
    assert needs(task("t", state=TaskState.COMPLETE, secrets="s")) == (frozenset(), frozenset())
    assert needs(Task(id="t", service_id="s", spec=TaskSpec())) == (frozenset(), frozenset())
