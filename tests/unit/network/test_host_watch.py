"""What a host says of itself: once, and again when it is news again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from overlace.model.findings import Finding
from overlace.model.paths import Notice
from overlace.network import host_watch
from overlace.network.host_watch import AGAIN_SECONDS, HostWatch, Mended, plan_full, plan_mended
from overlace.network.notices import Notices
from overlace.network.vfp.flows import TableFill


def fill(rows: int, *, evicts: bool = True, name: str = "flows") -> TableFill:
    return TableFill(name=name, rows=rows, capacity=1000, evicts=evicts, is_full=rows >= 990)


def test_a_full_table_is_told_once_until_it_was_emptier_or_long_after() -> None:
    said, told = plan_full([fill(500)], {}, 0)
    assert (said, told) == ([], {})
    said, told = plan_full([fill(1000)], told, 60)
    assert [(n.action, n.id) for n in said] == [("table_full", "flows")]
    assert said[0].attributes["rows"] == "1000" and said[0].attributes["capacity"] == "1000"
    assert "oldest" in said[0].attributes["consequence"]
    for rows in (1000, 950, 1000, 800, 995):  # it goes up and down, as tables that evict do
        said, told = plan_full([fill(rows)], told, 120)
        assert not said
    said, told = plan_full([fill(799)], told, 180)
    assert (said, told) == ([], {})
    said, told = plan_full([fill(1000)], told, 240)
    assert said
    assert not plan_full([fill(1000)], told, 240 + AGAIN_SECONDS - 1)[0]
    assert plan_full([fill(1000)], told, 240 + AGAIN_SECONDS)[0]
    assert "refused" in plan_full([fill(1000, evicts=False)], {}, 0)[0][0].attributes["consequence"]


def test_what_is_made_good_is_told_each_time_and_what_is_not_once() -> None:
    down = Finding(what="no interface carries 10.0.0.1", remedy="give it back")
    said, told = plan_mended(Mended(("the table was gone",), (down,)), frozenset())
    assert [(n.action, n.id) for n in said] == [("repaired", "the table was gone"), ("broken", down.what)]
    said, told = plan_mended(Mended(("the table was gone",), (down,)), told)
    assert [n.action for n in said] == ["repaired"]
    said, told = plan_mended(Mended(), told)
    assert (said, told) == ([], frozenset())
    assert [n.action for n in plan_mended(Mended((), (down,)), told)[0]] == ["broken"]


class Path:
    def __init__(self) -> None:
        self.looks = 0
        self.often = asyncio.Event()

    async def fill(self) -> list[TableFill]:
        return [fill(1000)]

    async def mend(self) -> Mended:
        self.looks += 1
        if self.looks == 10:
            self.often.set()
        if self.looks == 2:
            return Mended(("the vxlan device was gone",))
        if self.looks < 5:
            raise OSError("no such device")
        return Mended()


async def test_it_goes_on_looking_whatever_a_look_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "MEND_SECONDS", 0)
    monkeypatch.setattr(host_watch, "FILL_SECONDS", 0)
    path, notices = Path(), Notices()
    watch = HostWatch(path, notices)
    failing: list[str] = []
    monkeypatch.setattr(
        host_watch, "log", SimpleNamespace(warning=lambda event, error: failing.append(f"{event}: {error}"))
    )
    await watch.start()
    await path.often.wait()
    await watch.end()
    assert [n.action for _, n in notices.since(0)].count("repaired") == 1
    assert [n.action for _, n in notices.since(0)].count("table_full") == 1
    assert failing == ["the host cannot be looked after: no such device"] * 2, (
        "at the first look, and at the third: what stays the same is said once"
    )
    looks = path.looks
    await asyncio.sleep(0)
    assert path.looks == looks


def test_notices_are_read_in_order_and_once() -> None:
    notices = Notices()
    for n in range(300):
        notices.put(Notice(action="repaired", id=str(n)))
    found = notices.since(0)
    assert [notice.id for _, notice in found] == [str(n) for n in range(44, 300)]
    times = [at for at, _ in found]
    assert times == sorted(set(times))
    assert notices.since(times[-3]) == found[-2:] and notices.since(times[-1]) == []
