"""No report is lost, none goes twice while it is on its way, the newest of each task is what counts."""

from __future__ import annotations

import random

from overlace.agent.reports import MAX_REPORTS, ReportQueue
from overlace.agent.session import BACKOFF, GRACE, longer_pause
from overlace.model.objects import TaskStatus
from overlace.model.states import TaskState


def status(n: int) -> TaskStatus:
    return TaskStatus(TaskState.RUNNING, timestamp=n)


def test_only_the_newest_of_a_task_is_sent() -> None:
    q = ReportQueue()
    q.put("a", status(1))
    q.put("b", status(2))
    q.put("a", status(3))
    first = q.take()
    assert first is not None
    assert [(r.task_id, r.status.timestamp) for r in first.reports] == [("b", 2), ("a", 3)]
    assert q.take() is None and len(q) == 2
    q.acknowledge(first.sequence)
    assert len(q) == 0


def test_an_old_ack_does_not_cover_a_newer_report() -> None:
    q = ReportQueue()
    q.put("a", status(1))
    one = q.take()
    q.put("a", status(2))
    two = q.take()
    assert one and two
    q.acknowledge(one.sequence)
    assert len(q) == 1
    q.reconnected()
    again = q.take()
    assert again and [r.status.timestamp for r in again.reports] == [2]


def test_messages_are_bounded() -> None:
    q = ReportQueue()
    for i in range(MAX_REPORTS + 1):
        q.put(f"t{i}", status(i))
    first, second = q.take(), q.take()
    assert first and second and (len(first.reports), len(second.reports)) == (MAX_REPORTS, 1)


def test_whatever_happens_the_last_status_of_every_task_arrives() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        q = ReportQueue()
        wanted: dict[str, int] = {}
        stored: dict[str, int] = {}
        line: list = []
        for n in range(60):
            match rng.randrange(5):
                case 0 | 1:
                    task = rng.choice("abc")
                    wanted[task] = n
                    q.put(task, status(n))
                case 2:
                    if (m := q.take()) is not None:
                        line.append(m)
                case 3:
                    if line:
                        m = line.pop(0)
                        stored |= {
                            r.task_id: max(r.status.timestamp, stored.get(r.task_id, -1)) for r in m.reports
                        }
                        q.acknowledge(m.sequence)
                case 4:
                    line.clear()
                    q.reconnected()
        q.reconnected()
        while (m := q.take()) is not None:
            stored |= {r.task_id: max(r.status.timestamp, stored.get(r.task_id, -1)) for r in m.reports}
        assert stored == wanted, seed


def test_pauses_between_attempts_fit_the_time_a_restarted_manager_gives() -> None:
    def pauses(heartbeat: float) -> list[float]:
        found = [BACKOFF[0]]
        while len(found) < 10:
            found.append(longer_pause(found[-1], heartbeat))
        return found

    assert pauses(5)[:4] == [0.1, 0.2, 0.4, 0.8] and pauses(5)[-1] == BACKOFF[1]
    assert pauses(1)[-1] < 2 * GRACE * 1, "a node that is well must be back before it counts as down"
