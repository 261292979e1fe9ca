# ruff: noqa: F401, F811 - fixtures are imported by name
"""Healthchecks and logs as docker shows them."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from oci_bed import LINUX, LOOP, Bed, Registry, bed, pushed, registry, rootfs

from overlace.model.errors import NotFound
from overlace.runtime.base import Container, Healthcheck, LogOptions, Mount
from overlace.runtime.oci import logs as log_module
from overlace.runtime.oci.mkimage import Variant, push, write_layout

pytestmark = pytest.mark.host
MS = 1_000_000


async def _health(bed: Bed, container_id: str, wanted: str, seconds: float = 10.0) -> Container:
    async def reached() -> bool:
        return (await bed.runtime.inspect(container_id)).health == wanted

    await bed.until(reached, seconds)
    return await bed.runtime.inspect(container_id)


async def test_health_goes_from_starting_to_healthy_to_unhealthy_and_back(bed: Bed) -> None:
    check = Healthcheck(("CMD-SHELL", "echo looked; test ! -e /sick"), interval=100 * MS, retries=2)
    changes = bed.runtime.changes()
    config = await bed.running(healthcheck=check)
    assert (await bed.runtime.inspect(config.id)).health == "starting"
    assert await anext(changes) == config.id
    healthy = await _health(bed, config.id, "healthy")
    assert (healthy.health, healthy.failing_streak, healthy.health_log[-1].output) == (
        "healthy",
        0,
        "looked\n",
    )
    assert await asyncio.wait_for(anext(changes), 5) == config.id
    sick = Path(f"/proc/{healthy.pid}/root/sick")
    sick.touch()
    ill = await _health(bed, config.id, "unhealthy")
    assert ill.health == "unhealthy" and ill.failing_streak >= 2 and ill.health_log[-1].exit_code == 1
    assert await asyncio.wait_for(anext(changes), 5) == config.id
    sick.unlink()
    well = await _health(bed, config.id, "healthy")
    assert well.failing_streak == 0 and len(well.health_log) <= 5
    await asyncio.sleep(0.6)
    assert len((await bed.runtime.inspect(config.id)).health_log) == 5


async def test_a_probe_over_its_timeout_is_killed(bed: Bed) -> None:
    check = Healthcheck(("CMD", "sleep", "987"), interval=50 * MS, timeout=200 * MS, retries=1)
    config = await bed.running(healthcheck=check)
    ill = await _health(bed, config.id, "unhealthy")
    assert (
        ill.health_log[0].exit_code == -1
        and "Health check exceeded timeout (0.2s)" in ill.health_log[0].output
    )
    await bed.runtime.stop(config.id, grace=0)
    sleepers = [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.read_bytes() == b"sleep\x00987\x00"]
    assert sleepers == []


async def test_failures_in_the_start_period_do_not_count(bed: Bed) -> None:
    check = Healthcheck(
        ("CMD", "false"), interval=10_000 * MS, retries=1, start_period=600 * MS, start_interval=100 * MS
    )
    config = await bed.running(healthcheck=check)
    await asyncio.sleep(0.5)
    early = await bed.runtime.inspect(config.id)
    assert early.health == "starting" and early.failing_streak == 0 and early.health_log


async def test_the_images_healthcheck_is_honoured_and_can_be_switched_off(
    bed: Bed,
    registry: Registry,
    rootfs: Path,
    tmp_path: Path,
) -> None:
    image = {"Cmd": list(LOOP), "Healthcheck": {"Test": ["CMD", "true"], "Interval": 100 * MS, "Retries": 1}}
    write_layout(tmp_path / "l", [Variant(LINUX, rootfs, image)], "t")
    name = f"{registry.address}/checked:1"
    await push(tmp_path / "l", "t", name)
    await bed.runtime.pull(name, LINUX)
    own = bed.config(image=name)
    off = bed.config(image=name, healthcheck=Healthcheck(("NONE",)))
    for config in (own, off):
        await bed.runtime.create(config)
        await bed.runtime.start(config.id)
    assert (await _health(bed, own.id, "healthy")).health == "healthy"
    assert (await bed.runtime.inspect(off.id)).health is None


async def test_a_probe_is_the_containers_own_user_with_its_environment(bed: Bed) -> None:
    check = Healthcheck(("CMD-SHELL", "echo $OWN $(id -u) $(pwd)"), interval=50 * MS)
    config = await bed.running(healthcheck=check, user="app", env=("OWN=yes",))
    probed = await _health(bed, config.id, "healthy")
    assert probed.health_log[0].output == "yes 1000 /made/here\n"


async def test_streams_tail_since_and_until(bed: Bed) -> None:
    ended, _ = await bed.run("sh", "-c", "echo o1; echo e1 >&2; sleep 0.3; echo o2; sleep 0.3; printf o3")
    identity = ended.config.id
    lines = [line async for line in bed.runtime.logs(identity, LogOptions())]
    assert {line.data for line in lines if line.stream == "stderr"} == {b"e1\n"}
    assert [line.data for line in lines if line.stream == "stdout"] == [b"o1\n", b"o2\n", b"o3"]
    assert await bed.output(identity, stderr=False, tail=2) == "o2\no3"
    assert await bed.output(identity, tail=0) == ""
    assert await bed.output(identity, tail=100) == await bed.output(identity)
    middle = lines[2].timestamp
    assert await bed.output(identity, since=middle) == "o2\no3"
    assert await bed.output(identity, until=middle, stderr=False) == "o1\no2\n"
    assert abs(middle - time.time_ns()) < 60e9
    with pytest.raises(NotFound):
        bed.runtime.logs("0" * 64, LogOptions())


async def test_follow_from_before_the_start_until_the_end(bed: Bed) -> None:
    config = bed.config("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done")
    await bed.runtime.create(config)
    arrived: list[tuple[float, bytes]] = []

    async def follow() -> None:
        async for line in bed.runtime.logs(config.id, LogOptions(follow=True)):
            arrived.append((time.monotonic(), line.data))

    reader = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    await bed.runtime.start(config.id)
    await asyncio.wait_for(reader, 10)  # ends by itself
    assert [data for _, data in arrived] == [b"1\n", b"2\n", b"3\n"]
    assert arrived[1][0] - arrived[0][0] > 0.1  # as they came, not at the end


async def test_follow_ends_when_the_container_is_removed_or_time_is_up(bed: Bed) -> None:
    config = await bed.running()
    reader = asyncio.create_task(bed.output(config.id, follow=True))
    soon = asyncio.create_task(bed.output(config.id, follow=True, until=time.time_ns() + 300 * MS))
    assert await asyncio.wait_for(soon, 5) == "up\n"
    await bed.runtime.remove(config.id, force=True)
    assert await asyncio.wait_for(reader, 5) == "up\n"


async def test_long_lines_come_in_parts_that_make_the_whole(bed: Bed) -> None:
    ended, text = await bed.run("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo short")
    assert text == "x" * 100_000 + "\nshort\n"
    assert await bed.output(ended.config.id, tail=2) == text  # a line of many parts is one line


async def test_logs_rotate_without_losing_a_line(bed: Bed) -> None:
    config = await bed.running(
        "sh",
        "-c",
        "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; sleep 1",
        log_max_size=20_000,
        log_max_files=20,  # enough for all of it
    )
    following = asyncio.create_task(bed.output(config.id, follow=True))
    places = bed.runtime._slots[config.id].places

    async def rotated() -> bool:
        return log_module.rotate_if_large(places.log, places.bundle / "ctl", 20_000, 20) > 0

    await bed.until(rotated)
    whole = await asyncio.wait_for(following, 20)
    assert re.findall(r"\d+", whole) == [str(i) for i in range(1, 3001)]
    assert places.log.with_name("log.1").exists()
    assert await bed.output(config.id) == whole
    assert await bed.output(config.id, tail=2500) == "".join(whole.splitlines(keepends=True)[-2500:])


async def test_log_limits_of_its_own_hold_also_in_a_flood(bed: Bed) -> None:
    config = await bed.running(
        "sh",
        "-c",
        "i=0; while :; do i=$((i+1)); echo $i; done",
        log_max_size=20_000,
        log_max_files=3,
        nano_cpus=10**8,
    )
    log = bed.runtime._slots[config.id].places.log

    async def full() -> bool:
        return log.with_name("log.2").exists()

    await bed.until(full)
    await asyncio.sleep(3)  # the pauses between looks grow shorter as it goes on
    files = sorted(log.parent.glob("log*"))
    assert [f.name for f in files] == ["log", "log.1", "log.2"]
    assert log.with_name("log.2").stat().st_size < 2_000_000, "a second of flood is several times that"


async def test_a_flood_does_not_hold_up_the_rest(bed: Bed) -> None:
    config = await bed.running("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done")
    worst = 0.0
    reader = asyncio.create_task(bed.output(config.id, follow=True))
    while not reader.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        worst = max(worst, time.monotonic() - before)
    assert len((await reader).splitlines()) == 20_000
    assert worst < 0.5, worst


async def test_logs_and_volumes_live_in_the_data_root_only(bed: Bed) -> None:
    config = await bed.running("sh", "-c", "echo kept", mounts=(Mount("volume", "/v", source="named"),))
    await bed.runtime.wait(config.id)
    await bed.runtime.remove(config.id)
    assert (bed.data_root / "volumes/named/_data").is_dir()  # a named volume outlives its containers
    assert not (bed.data_root / "containers" / config.id).exists()
