"""What a node remembers of its tasks: damage costs only the file, a full disk costs nothing."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlace.agent.state import AgentState
from overlace.model.errors import Unavailable
from overlace.model.objects import Task
from overlace.model.specs import ContainerSpec, TaskSpec

TASK = Task(
    id="t" * 25,
    service_id="s",
    service_name="web",
    slot=1,
    spec=TaskSpec(container_spec=ContainerSpec(image="x")),
)


@contextlib.contextmanager
def disk_full() -> Iterator[None]:
    """Every write to a file fails (setrlimit(2) RLIMIT_FSIZE; Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kept(path: Path) -> list[str]:
    state = AgentState(path)
    try:
        return [t.id for t in state.tasks()]
    finally:
        state.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "agent" / "agent.db"
    state = AgentState(path)
    state.put_tasks([TASK])
    state.close()
    return path


def test_a_full_disk_at_the_start_forgets_no_task(path: Path) -> None:
    with disk_full(), pytest.raises(Unavailable, match="free some disk space"):
        AgentState(path)
    assert kept(path) == [TASK.id]


def test_a_full_disk_refuses_a_write_and_changes_nothing(path: Path) -> None:
    state = AgentState(path)
    with disk_full(), pytest.raises(Unavailable, match="free some disk space"):
        state.put_tasks([], remove=[TASK.id])
    state.put_tasks([])
    state.close()
    assert kept(path) == [TASK.id]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("a file")
    with pytest.raises(Unavailable):
        AgentState(tmp_path / "agent" / "agent.db")


@pytest.mark.parametrize("damage", ["garbage", "cut", "page", "row", "newer"])
def test_a_damaged_file_is_set_aside(path: Path, damage: str) -> None:
    match damage:
        case "garbage":
            path.write_bytes(b"?" * 5000)
        case "cut":
            path.write_bytes(path.read_bytes()[:5000])
        case "page":
            path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096 * 8)
        case _:
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("UPDATE tasks SET body=x'ff'" if damage == "row" else "PRAGMA user_version=99")
                db.commit()
    assert kept(path) == []
    assert path.with_suffix(".unreadable").exists()
