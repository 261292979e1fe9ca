"""What a host does about its ways to the others: MTUs set once, hosts out of reach told, checksums taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from overlace.model.paths import PathState
from overlace.network import path_keeper
from overlace.network.path_keeper import Interface, PathKeeper

from .test_driver import Silence, Under


class Kernel:
    def __init__(self) -> None:
        self.paths: dict[str, int] = {}
        self.resized: list[tuple[str, int]] = []
        self.taken_over = 0
        self.done = asyncio.Event()

    async def open_probe(self) -> Silence:
        return Silence()

    async def set_paths(self, mtus: Mapping[str, int]) -> None:
        self.paths = dict(mtus)
        self.done.set()

    async def look_at_underlay(self) -> Under:
        return Under()

    async def resize(self, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None:
        self.resized.append((endpoint_id, mtu))

    async def leave_checksums_to_the_kernel(self) -> bool:
        self.taken_over += 1
        self.done.set()
        return True


OK = PathState(node="b", address="10.0.0.2", state="ok", mtu=1500)
DOWN = msgspec.structs.replace(OK, state="down")


class Told:
    def __init__(self) -> None:
        self.kernel = Kernel()
        self.away: list[frozenset[str]] = []
        self.news: list[PathState] = []
        self.mtu = 1450
        self.keeper = PathKeeper(self.kernel, self.interfaces, self.news.extend, self.away.append)

    def interfaces(self) -> list[Interface]:
        return [Interface("e1", Path("/x"), "eth0", self.mtu)]


@pytest.fixture
async def told() -> object:
    t = Told()
    await t.keeper.open(1500)
    t.keeper.follow({"b": ("10.0.0.2", "beta")})
    yield t
    await t.keeper.close()


async def settled(t: Told) -> None:
    async with asyncio.timeout(5):
        await t.kernel.done.wait()
    t.kernel.done.clear()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_measured_mtu_reaches_the_data_path_and_interfaces_once(told: Told) -> None:
    await settled(told)  # the first pass
    told.kernel.resized.clear()
    told.mtu = 1350
    told.keeper._changed([msgspec.structs.replace(OK, mtu=1400)])
    await settled(told)
    assert told.kernel.paths == {"10.0.0.2": 1400} and told.kernel.resized == [("e1", 1350)]
    told.keeper.touch()
    for _ in range(5):
        await asyncio.sleep(0)
    assert told.kernel.resized == [("e1", 1350)]


async def test_only_a_host_that_answered_once_can_be_out_of_reach(told: Told) -> None:
    told.keeper._changed([DOWN])
    assert told.away == []
    told.keeper._changed([OK])
    told.keeper._changed([DOWN])
    told.keeper._changed([OK])
    assert told.away == [frozenset({"b"}), frozenset()]
    assert [s.state for s in told.news][-4:] == ["down", "ok", "down", "ok"]


async def test_whoever_waits_for_measured_paths_goes_on_with_the_last_or_when_its_time_is_over(
    told: Told,
) -> None:
    told.keeper.follow({"b": ("10.0.0.2", "beta"), "c": ("10.0.0.3", "gamma")})
    waits = asyncio.create_task(told.keeper.settled({"b", "c", "gone"}, 60))
    await asyncio.sleep(0)
    told.keeper._changed([OK])
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waits.done()
    told.keeper._changed([msgspec.structs.replace(DOWN, node="c", address="10.0.0.3")])
    async with asyncio.timeout(5):
        await waits
    told.keeper.follow({"d": ("10.0.0.4", "delta")})
    async with asyncio.timeout(5):
        await told.keeper.settled({"d"}, 0.01)


async def test_a_corrupting_card_loses_its_work(told: Told) -> None:
    await settled(told)
    told.keeper._corrupted("b")
    await settled(told)
    assert told.kernel.taken_over == 1


async def test_a_look_that_fails_is_said_and_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was: of a task that nobody waits for, nobody would hear."""
    told = Told()

    async def closed() -> Under:
        raise RuntimeError("data path is not open")

    monkeypatch.setattr(told.kernel, "look_at_underlay", closed)
    said: list[str] = []

    def warning(event: str, error: str) -> None:
        said.append(error)

    monkeypatch.setattr(path_keeper, "log", SimpleNamespace(warning=warning))
    told.keeper._look()
    await asyncio.gather(*told.keeper._aside)
    assert said == ["data path is not open"]


async def test_hosts_that_left_are_forgotten(told: Told) -> None:
    told.keeper._changed([OK])
    told.keeper.follow({})
    assert not told.keeper._seen
