"""Pulls that join, what their callers hear, and what an image loses with a name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from overlace.model.errors import Conflict, Unavailable
from overlace.runtime.base import Image, Platform
from overlace.runtime.oci.pulls import Progress, Pulls
from overlace.runtime.oci.untag import User, plan_removal

KEY = ("web:1@", Platform("linux", "amd64"), None)
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
IMAGE = Image("sha256:" + "12" * 32, ("r/web:1",), (f"r/web@{A}",), Platform("linux", "amd64"), "", 1, {})


async def test_two_who_pull_the_same_cause_one_pull_and_both_hear_all_of_it() -> None:
    pulls, started, go = Pulls(), 0, asyncio.Event()

    async def pull(progress: Progress) -> Image:
        nonlocal started
        started += 1
        progress.say([A], "Already exists")
        progress.say([A, B], "Pulling fs layer")
        await go.wait()
        progress.say([A, B], "Pull complete")
        return IMAGE

    heard: dict[str, list[tuple[str, str]]] = {"early": [], "late": []}
    early = asyncio.create_task(pulls.join(KEY, pull, lambda *said: heard["early"].append(said)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = asyncio.create_task(pulls.join(KEY, pull, lambda *said: heard["late"].append(said)))
    await asyncio.sleep(0)
    early.cancel()
    go.set()
    assert await late == IMAGE, "one who gives up breaks nothing for the other"
    assert started == 1
    words = [("a" * 12, "Already exists"), ("b" * 12, "Pulling fs layer"), ("b" * 12, "Pull complete")]
    assert heard == {"early": words, "late": words}
    await pulls.join(KEY, pull, None)
    assert started == 2, "asked again later, it is done again"


async def test_a_failed_pull_is_told_to_everybody() -> None:
    async def fail(progress: Progress) -> Image:
        raise Unavailable("no registry")

    pulls = Pulls()
    results = await asyncio.gather(*(pulls.join(KEY, fail, None) for _ in range(2)), return_exceptions=True)
    assert [str(r) for r in results] == ["no registry"] * 2


async def test_layers_are_told_as_they_arrive(tmp_path: Path) -> None:
    progress, heard = Progress(), []
    progress.listen(lambda layer, status: heard.append((layer[0], status)))
    watching = asyncio.create_task(progress.watch({A: tmp_path / "a", B: tmp_path / "b"}))
    (tmp_path / "b").touch()
    await asyncio.sleep(0.05)
    assert heard == [("b", "Download complete")]
    (tmp_path / "a").touch()
    await asyncio.wait_for(watching, 5)
    assert heard[1:] == [("a", "Download complete")]


def test_what_image_rm_takes_away() -> None:
    two = Image(IMAGE.id, ("r/web:1", "r/web:2"), IMAGE.digests, IMAGE.platform, "", 1, {})
    one_name = plan_removal("r/web:2", two, (), force=False)
    assert (one_name.tags, one_name.digests, one_name.gone) == (("r/web:1",), IMAGE.digests, False)
    assert one_name.lines == ("Untagged: r/web:2",)
    last = plan_removal("r/web:1", IMAGE, (), force=False)
    assert last.gone
    assert last.lines == ("Untagged: r/web:1", f"Untagged: r/web@{A}", f"Deleted: {IMAGE.id}")
    by_id = plan_removal("1212", two, (), force=False)
    assert by_id.gone and by_id.lines[-1] == f"Deleted: {IMAGE.id}"


def test_what_image_rm_refuses() -> None:
    stopped, running = User("c" * 64, False), User("d" * 64, True)
    with pytest.raises(Conflict, match=r"must force\) - container cccccccccccc is using"):
        plan_removal("r/web:1", IMAGE, (stopped,), force=False)
    forced = plan_removal("r/web:1", IMAGE, (stopped,), force=True)
    assert (forced.tags, forced.digests, forced.gone) == ((), (), False), "its files stay for the container"
    with pytest.raises(Conflict, match="being used by stopped container cccccccccccc"):
        plan_removal("1212", IMAGE, (stopped,), force=False)
    with pytest.raises(
        Conflict, match=r"cannot be forced\) - image is being used by running container dddddddddddd"
    ):
        plan_removal(IMAGE.id, IMAGE, (running,), force=True)
    moved = Image(IMAGE.id, ("r/web:1", "r/shop:1"), (), IMAGE.platform, "", 1, {})
    with pytest.raises(Conflict, match="referenced in multiple repositories"):
        plan_removal("1212", moved, (), force=False)
