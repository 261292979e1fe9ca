"""Standalone containers: what becomes of them when they end, by people's verbs, and when the daemon dies anywhere."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.agent.standalone.attacher import Attacher, Member
from overlace.agent.standalone.keeper import Keeper
from overlace.agent.standalone.network import plan_network, resolv_conf
from overlace.agent.standalone.places import Places
from overlace.agent.standalone.plan import FIRST_PAUSE, LONGEST_PAUSE, SECOND, Next, plan_end, plan_found
from overlace.agent.standalone.records import Dns, Joined, Record, Records, Restart, Wish
from overlace.model.errors import (
    Conflict,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
    Unavailable,
)
from overlace.model.netview import EndpointEntry, NetView, NetworkEntry
from overlace.model.specs import PortConfig
from overlace.network.base import Attached
from overlace.runtime.base import Container, ContainerConfig

ID = "ab" * 32
ATTACHER = Attacher(lambda network, address: 24)


def wish(id: str = ID, **changed: Any) -> Wish:
    config = ContainerConfig(id=id, name=f"c-{id[:4]}", image="app:1", netns="")
    return Wish(**({"config": config, "networks": (Joined(name="bridge"),)} | changed))


def ended(code: int = 0, ran: int = SECOND, **changed: Any) -> Container:
    values: dict[str, Any] = {
        "config": wish().config,
        "status": "exited",
        "image_id": "sha256:0",
        "created_at": 1,
        "exit_code": code,
        "started_at": SECOND,
        "finished_at": SECOND + ran,
    }
    return Container(**(values | changed))


def record(policy: str = "no", most: int = 0, **changed: Any) -> Record:
    values: dict[str, Any] = {
        "wish": wish(restart=Restart(policy, most)),
        "wanted": "running",
        "started": True,
    }  # type: ignore[arg-type]
    return Record(**(values | changed))


@pytest.mark.parametrize(
    ("given", "container", "action"),
    [
        (record(), ended(0), Next.STAY),
        (record("always"), ended(0), Next.START),
        (record("always", by_hand=True), ended(0), Next.STAY),
        (record("unless-stopped"), ended(1), Next.START),
        (record("unless-stopped", by_hand=True), ended(1), Next.STAY),
        (record("on-failure"), ended(0), Next.STAY),
        (record("on-failure"), ended(9), Next.START),
        (record("on-failure", 2, restarts=1), ended(9), Next.START),
        (record("on-failure", 2, restarts=2), ended(9), Next.STAY),
        (record("always", wanted="stopped"), ended(9), Next.STAY),
        (Record(wish=wish(auto_remove=True), wanted="running", started=True), ended(1), Next.REMOVE),
    ],
)
def test_the_end_of_a_run(given: Record, container: Container, action: Next) -> None:
    assert plan_end(given, container).action == action


@pytest.mark.parametrize(
    ("given", "container", "action"),
    [
        (record(), ended(status="running", finished_at=0), Next.WATCH),
        (record("always", wanted="stopped", by_hand=True), ended(0), Next.START),  # Docker's always
        (record("unless-stopped", wanted="stopped", by_hand=True), ended(0), Next.STAY),
        (record("unless-stopped"), ended(137), Next.START),  # the host lost power
        (record("on-failure"), ended(137), Next.START),
        (record(), ended(137), Next.STAY),
        (record("always", started=False, wanted="created"), ended(0, started_at=0, finished_at=0), Next.STAY),
        (record(started=False), ended(0, status="created", finished_at=0), Next.START),  # asked, then we died
        (Record(wish=wish(auto_remove=True), wanted="running", started=True), ended(1), Next.REMOVE),
        (record(wanted="removed"), ended(1), Next.REMOVE),
    ],
)
def test_found_again_by_a_new_daemon(given: Record, container: Container, action: Next) -> None:
    assert plan_found(given, container).action == action


@given(st.integers(0, 10**6), st.integers(0, 10**12))
def test_pauses_grow_and_have_an_end(restarts: int, ran: int) -> None:
    step = plan_end(record("always", restarts=restarts), ended(1, ran))
    assert FIRST_PAUSE <= step.pause <= LONGEST_PAUSE
    if ran >= 10 * SECOND:
        assert step.pause == FIRST_PAUSE


def test_what_the_network_is_asked_for() -> None:
    ports = (PortConfig(target_port=80, published_port=8080, publish_mode="host"),)
    asked = plan_network(wish(ports=ports, dns=Dns(("9.9.9.9",))), ())
    assert (asked.task_id, asked.attachments, asked.host_ports, asked.nameservers) == (
        ID,
        (),
        ports,
        ("9.9.9.9",),
    )
    assert plan_network(wish(mode="host"), ()).mode == "host"


def test_resolv_conf_is_the_hosts_unless_the_container_has_its_own() -> None:
    host = "nameserver 10.1.1.1\nsearch corp\noptions rotate\n"
    assert "nameserver 127.0.0.11\nsearch corp\noptions rotate" in resolv_conf(wish(), host, ())
    own = resolv_conf(wish(dns=Dns((), ("x.y",), ("ndots:2",))), host, ())
    assert "search x.y\n" in own and "ndots:2" in own and "rotate" not in own
    assert resolv_conf(wish(dns=Dns((), (".",))), host, ()).count("search") == 0
    assert "nameserver 10.1.1.1" in resolv_conf(wish(mode="host"), host, ())
    assert "nameserver 9.9.9.9" in resolv_conf(wish(mode="host", dns=Dns(("9.9.9.9",))), host, ())
    assert resolv_conf(wish(mode="none"), host, ()) == ""


def test_a_damaged_record_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / f"{ID}.json").write_text("{")
    records = Records(tmp_path)
    records.load()
    assert not list(records) and (tmp_path / f"{ID}.unreadable").exists()


# -- the keeper --------------------------------------------------------------------------------------------------


class Died(BaseException):
    """The daemon was killed right here."""


class Host:
    """Runtime and network of one host, which outlive the keeper; dies before its n-th effect when told to."""

    def __init__(self) -> None:
        self.there: dict[str, Container] = {}
        self.attached: set[str] = set()
        self.listeners: set[asyncio.Queue[str]] = set()
        self.clock = 0
        self.effects = 0
        self.die_at = -1
        self.refuse: Exception | None = None
        self.asked: list[Any] = []
        self.away: OverlaceError | None = None  # the runtime does not answer

    def effect(self) -> None:
        self.effects += 1
        if self.effects == self.die_at:
            raise Died

    def put(self, id: str, **changed: Any) -> Container:
        self.there[id] = msgspec.structs.replace(self.there[id], **changed)
        for queue in self.listeners:
            queue.put_nowait(id)
        return self.there[id]

    async def list(self) -> list[Container]:
        if self.away is not None:
            raise self.away
        return list(self.there.values())

    async def inspect(self, id: str) -> Container:
        if self.away is not None:
            raise self.away
        if id not in self.there:
            raise NotFound(f"No such container: {id}")
        return self.there[id]

    async def create(self, config: ContainerConfig) -> Container:
        self.effect()
        self.there[config.id] = Container(config, "created", "sha256:0", 1)
        return self.there[config.id]

    async def start(self, id: str) -> Container:
        self.effect()
        if self.refuse is not None:
            raise self.refuse
        assert id in self.attached or self.there[id].config.netns in ("", "host"), "no network to start on"
        self.clock += SECOND
        return self.put(id, status="running", pid=7, started_at=self.clock, finished_at=0)

    def end(self, id: str, code: int = 0) -> Container:
        if self.there[id].status != "running":
            return self.there[id]
        self.clock += SECOND
        return self.put(id, status="exited", exit_code=code, finished_at=self.clock)

    async def stop(self, id: str, grace: int | None = None) -> Container:
        self.effect()
        return self.end(id, 143)

    async def kill(self, id: str, signal: str) -> None:
        self.effect()
        if self.there[id].status != "running":
            raise Conflict(f"container {id} is not running")
        if signal == "SIGKILL":
            self.end(id, 137)

    async def wait(self, id: str) -> Container:
        return self.there[id]

    async def rename(self, id: str, name: str) -> None:
        self.put(id, config=msgspec.structs.replace(self.there[id].config, name=name))

    async def remove(self, id: str, force: bool = False, volumes: bool = True) -> None:
        self.effect()
        self.there.pop(id, None)
        for queue in self.listeners:
            queue.put_nowait(id)

    async def changes(self) -> Any:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self.listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.listeners.discard(queue)

    # the network
    async def attach(self, task: Any, netns: Path | None = None) -> Attached:
        self.effect()
        self.attached.add(task.task_id)
        self.asked.append((task, netns))
        names = ["bridge"] * task.on_local + [a.network_id for a in task.attachments]
        return Attached(None, "", dict.fromkeys(names, "172.17.0.2/16"), {}, {})

    async def detach(self, id: str) -> None:
        self.effect()
        self.attached.discard(id)

    async def driver(self) -> Any:
        return self


@contextlib.asynccontextmanager
async def keeping(folder: Path, host: Host) -> Any:
    keeper = Keeper(folder, host, Places(ATTACHER, host.driver, lambda id: Path("/run/netns") / id))  # type: ignore[arg-type]
    await keeper.load()
    keeper.follow()
    await settle()
    try:
        yield keeper
    finally:
        await keeper.close()


async def settle() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


async def test_run_stop_start_remove(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        made = await keeper.create(wish())
        assert made.config.netns == f"/run/netns/{ID}" and not host.attached
        assert await keeper.start(ID) and not await keeper.start(ID)
        assert host.attached == {ID} and keeper.attached(ID)
        with pytest.raises(Conflict, match="container is running: stop the container before removing"):
            await keeper.remove(ID, force=False, volumes=False)
        assert await keeper.stop(ID) and not await keeper.stop(ID)
        assert not host.attached, "its address is free again"
        await keeper.start(ID)
        await keeper.remove(ID, force=True, volumes=True)
        assert not host.there and not host.attached and not list(tmp_path.glob("*.json"))
        with pytest.raises(NotFound):
            await keeper.start(ID)


async def test_waiting_for_the_next_exit_and_for_the_removal(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        await keeper.create(wish(auto_remove=True))
        exit, gone = keeper.wait(ID, removed=False), keeper.wait(ID, removed=True)
        await keeper.start(ID)
        host.end(ID, 5)
        assert (await exit)[0] == 5 and (await gone)[0] == 5
        assert not host.there and keeper.record(ID) is None


async def test_a_restart_is_no_reason_to_remove(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        await keeper.create(wish(auto_remove=True))
        await keeper.start(ID)
        await keeper.restart(ID)
        assert host.there[ID].status == "running" and keeper.record(ID).wish.auto_remove


async def test_what_does_not_start_leaves_nothing_on_the_network(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        await keeper.create(wish(restart=Restart("always")))
        host.refuse = InvalidArgument('exec: "x": executable file not found in $PATH')
        with pytest.raises(InvalidArgument, match="not found"):
            await keeper.start(ID)
        assert not host.attached and not keeper.restarting(ID)

        async def taken(task: Any, netns: Path | None = None) -> Attached:
            raise Conflict("Bind for 0.0.0.0:80 failed: port is already allocated")

        host.attach = taken  # type: ignore[method-assign]
        with pytest.raises(Internal, match=r"failed to set up container networking: .*already allocated"):
            await keeper.start(ID)


async def test_a_kill_by_hand_is_not_undone_by_the_policy(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        await keeper.create(wish(restart=Restart("always")))
        await keeper.start(ID)
        await keeper.kill(ID, "HUP", ends=False)
        await keeper.kill(ID, "SIGKILL", ends=True)
        await settle()
        assert host.there[ID].status == "exited" and not keeper.restarting(ID) and not host.attached


async def test_a_policy_starts_again_and_counts(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        await keeper.create(wish(restart=Restart("on-failure", 1)))
        await keeper.start(ID)
        host.end(ID, 3)
        async with asyncio.timeout(20):
            while host.there[ID].status != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert keeper.record(ID).restarts == 1
        host.end(ID, 3)
        await settle()
        assert not keeper.restarting(ID) and not host.attached


async def test_a_run_that_ended_while_no_daemon_was_there(tmp_path: Path) -> None:
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        for id, policy in (("aa" * 32, "no"), ("bb" * 32, "always")):
            await keeper.create(wish(id, restart=Restart(policy)))  # type: ignore[arg-type]
            await keeper.start(id)
        await keeper.create(wish("cc" * 32, auto_remove=True))
        await keeper.start("cc" * 32)
    for id in list(host.there):
        host.end(id, 1)
    async with keeping(tmp_path, host):
        assert {i[:2]: c.status for i, c in host.there.items()} == {"aa": "exited", "bb": "running"}
        assert host.attached == {"bb" * 32}


@pytest.mark.parametrize("away", [Unavailable("no engine"), Internal("HTTP status 500")])
async def test_a_daemon_that_starts_before_its_engine_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: OverlaceError
) -> None:
    monkeypatch.setattr("overlace.agent.standalone.persist.RETRY_SECONDS", (0.01, 0.01))
    host = Host()
    async with keeping(tmp_path, host) as keeper:
        for id in ("aa" * 32, "bb" * 32, "cc" * 32):
            await keeper.create(wish(id, restart=Restart("always")))
            await keeper.start(id)
    host.end("bb" * 32, 1)
    del host.there["cc" * 32]
    host.away = away
    async with keeping(tmp_path, host) as keeper:
        assert len(keeper.records()) == 3, "nothing is given up for an engine that is away"
        host.away = None
        async with asyncio.timeout(20):
            while host.there["bb" * 32].status != "running" or len(keeper.records()) == 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert host.attached == {"aa" * 32, "bb" * 32}
        assert {p.stem for p in tmp_path.glob("*.json")} == set(host.there)


@pytest.mark.parametrize("die_at", range(1, 9))
@pytest.mark.parametrize("auto_remove", [False, True])
async def test_killed_at_any_effect_the_next_daemon_leaves_no_half_things(
    tmp_path: Path, die_at: int, auto_remove: bool
) -> None:
    host = Host()
    host.die_at = die_at
    with contextlib.suppress(Died):
        keeper = Keeper(tmp_path, host, Places(ATTACHER, host.driver, lambda id: Path("/run/netns") / id))  # type: ignore[arg-type]
        await keeper.load()
        await keeper.create(wish(auto_remove=auto_remove))
        await keeper.start(ID)
        await keeper.stop(ID)
        with contextlib.suppress(NotFound):  # gone with its end
            await keeper.remove(ID, force=False, volumes=True)
    host.die_at = -1
    async with keeping(tmp_path, host):
        kept = {p.stem for p in tmp_path.glob("*.json")}
        assert kept == set(host.there), "every container has its record, every record its container"
        running = {i for i, c in host.there.items() if c.status == "running"}
        assert host.attached == running, "who runs has a network, nobody else"


# -- networks of one that runs ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def in_a_swarm(folder: Path, host: Host) -> Any:
    """A keeper whose attacher is given an address at once on networks `shop` and `desk`."""
    view = NetView(NetworkEntry(n, n, 4097, ("10.0.1.0/24",), ("10.0.1.1",)) for n in ("shop", "desk"))
    attacher = Attacher(lambda network, address: 24)

    def manager() -> None:
        """What it is told it gives."""
        for one in attacher.to_tell() or ():
            if one.target in ("shop", "desk"):
                view.put(
                    EndpointEntry(one.id, one.target, "n1", "", "", one.name, "10.0.1.9", "02:42:0a:00:01:09")
                )
            else:
                attacher.refused({one.id: ("NotFound", f"network {one.target} not found")})

    attacher.join(Member("n1", lambda: view, manager))
    keeper = Keeper(folder, host, Places(attacher, host.driver, lambda id: Path("/run/netns") / id))  # type: ignore[arg-type]
    await keeper.load()
    keeper.follow()
    try:
        yield keeper, attacher
    finally:
        await keeper.close()


async def test_networks_come_and_go_while_it_runs(tmp_path: Path) -> None:
    host = Host()
    async with in_a_swarm(tmp_path, host) as (keeper, attacher):
        told: list[tuple[str, str]] = []
        keeper.on_network = lambda action, id, joined: told.append((action, joined.name))
        await keeper.create(wish())
        await keeper.start(ID)
        await keeper.connect(ID, Joined(name="shop", target="shop", aliases=("nick",)))
        task, netns = host.asked[-1]
        assert netns == Path("/proc/7/ns/net") and task.local, (
            "in the namespace it runs in, beside the bridge"
        )
        assert [a.network_id for a in task.attachments] == ["shop"]
        assert [one.target for one in attacher.to_tell()] == ["shop"]
        with pytest.raises(
            PermissionDenied, match="endpoint with name c-abab already exists in network shop"
        ):
            await keeper.connect(ID, Joined(name="shop", target="shop"))
        await keeper.disconnect(ID, "bridge")
        assert not host.asked[-1][0].local
        with pytest.raises(PermissionDenied, match="is not connected to network bridge"):
            await keeper.disconnect(ID, "bridge")
        gone = await keeper.disconnect(ID, "shop")
        assert gone.network_id == "shop" and not host.attached and not attacher.to_tell()
        await keeper.connect(ID, Joined(name="bridge"))
        assert host.attached == {ID}
        await keeper.stop(ID)
        came, went = (
            [name for what, name in told if what == "connect"],
            [n for w, n in told if w == "disconnect"],
        )
        assert (came, went) == (["bridge", "shop", "bridge"], ["bridge", "shop", "bridge"])


async def test_a_network_that_cannot_be_joined_leaves_all_as_it_was(tmp_path: Path) -> None:
    host = Host()
    async with in_a_swarm(tmp_path, host) as (keeper, attacher):
        await keeper.create(wish())
        await keeper.start(ID)
        with pytest.raises(NotFound, match="Could not attach to network nosuch"):
            await keeper.connect(ID, Joined(name="nosuch", target="nosuch"))
        assert [j.name for j in keeper.record(ID).wish.networks] == ["bridge"] and host.attached == {ID}
        assert not attacher.to_tell(), "nothing is asked for any more"
        await keeper.create(wish("cd" * 32, mode="host", networks=()))
        with pytest.raises(InvalidArgument, match="cannot be connected to any other network"):
            await keeper.connect("cd" * 32, Joined(name="shop", target="shop"))


async def test_networks_of_one_that_does_not_run_are_for_its_next_start(tmp_path: Path) -> None:
    host = Host()
    async with in_a_swarm(tmp_path, host) as (keeper, attacher):
        await keeper.create(wish())
        await keeper.connect(ID, Joined(name="desk", target="desk"))
        assert not attacher.to_tell() and not host.attached
        await keeper.start(ID)
        assert [a.network_id for a in host.asked[-1][0].attachments] == ["desk"]
        await keeper.stop(ID)
        assert not attacher.to_tell(), "its address is free while it does not run"
        await keeper.disconnect(ID, "desk")
        await keeper.disconnect(ID, "bridge")
        with pytest.raises(Internal, match="is on no network"):
            await keeper.start(ID)


async def test_leaving_the_swarm_takes_its_networks_and_no_others(tmp_path: Path) -> None:
    host = Host()
    async with in_a_swarm(tmp_path, host) as (keeper, _):
        shop = Joined(name="shop", target="shop")
        for id, networks in (("aa" * 32, (Joined(name="bridge"), shop)), ("bb" * 32, (shop,))):
            await keeper.create(wish(id, networks=networks))
            await keeper.start(id)
        await keeper.leave_swarm()
        assert host.attached == {"aa" * 32} and all(c.status == "running" for c in host.there.values())
        task, _ = host.asked[-1]
        assert task.task_id == "aa" * 32 and not task.attachments and task.local


async def test_an_address_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    host = Host()
    async with in_a_swarm(tmp_path, host) as (keeper, attacher):
        await keeper.create(wish(networks=(Joined(name="shop", target="shop"),)))
        ids = []
        for _ in range(2):
            await keeper.start(ID)
            ids += [one.id for one in attacher.to_tell()]
            await keeper.stop(ID)  # the view goes on showing what it had, until the manager has heard
        assert len(set(ids)) == 2
    async with in_a_swarm(tmp_path, host) as (keeper, attacher):
        await keeper.start(ID)
        [now] = attacher.to_tell()
        assert now.id not in ids, "nor after the daemon's death"
