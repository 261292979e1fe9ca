"""Paths between hosts: what probes lost and answered say, and the MTU that follows from it for containers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.model.netview import NetView
from overlace.model.specs import MTU_OPTION
from overlace.network.mtu import plan_mtu
from overlace.network.paths import FLOOR, FLOOR6, Path, Probe

from .world import HOST, ME, OTHER, network, node

PA = "172.28.1.12"


class Wire:
    """Carries a path's probes through virtual time; `passes` says which arrive."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.count = path, 0.0, 0
        self.passes: Callable[[Probe], bool] = lambda probe: True

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.path.expire(self.now)
            for probe in self.path.plan(self.now):
                self.count += 1
                self.path.sent(self.count, probe, self.now)
                if self.passes(probe):
                    self.path.answered(self.count, 200, self.now)
            self.now = max(self.now + 0.001, min(until, self.path.due_at()))


@pytest.fixture
def wire() -> Wire:
    return Wire(Path("b", PA, 1500, 0.0))


def test_an_answered_path_is_ok_with_its_mtu_and_round_trip(wire: Wire) -> None:
    wire.run(3)
    state = wire.path.report()
    assert (state.state, state.loss, state.rtt, state.mtu, state.checksum) == ("ok", 0, 200, 1500, "ok")


def test_a_blocked_path_is_down_within_seconds_and_ok_again_as_soon(wire: Wire) -> None:
    wire.run(5)
    wire.passes = lambda probe: False
    wire.run(4)
    assert wire.path.report().state == "down" and wire.path.report().loss == 100
    wire.passes = lambda probe: True
    wire.run(3)
    assert wire.path.report().state == "ok"


def test_one_lost_probe_is_no_broken_path(wire: Wire) -> None:
    wire.run(30)
    lost = [wire.count + 1]
    wire.passes = lambda probe: wire.count not in lost
    wire.run(5)
    assert wire.path.report().state == "ok"


def test_a_path_that_loses_a_fifth_is_lossy(wire: Wire) -> None:
    wire.run(2)
    wire.passes = lambda probe: wire.count % 5 != 0
    wire.run(40)
    assert wire.path.report().state == "lossy"


@given(st.integers(FLOOR, 9000), st.integers(FLOOR, 9000))
def test_the_search_finds_what_fits_to_the_byte(real: int, widest: int) -> None:
    wire = Wire(Path("b", PA, widest, 0.0))
    wire.passes = lambda probe: probe.size <= real or probe.kind == "check-slow"
    wire.run(60)
    assert wire.path.report().mtu == min(real, widest)


def test_a_path_that_becomes_narrower_is_measured_again_and_wider_too(wire: Wire) -> None:
    wire.run(5)
    wire.passes = lambda probe: probe.size <= 1400
    wire.run(30)
    assert wire.path.report().mtu == 1400 and wire.path.report().state == "ok"
    wire.passes = lambda probe: True
    wire.run(90)
    assert wire.path.report().mtu == 1500


def test_loss_alone_does_not_make_a_path_narrow(wire: Wire) -> None:
    wire.run(5)
    wire.passes = lambda probe: False
    wire.run(10)
    wire.passes = lambda probe: True
    wire.run(10)
    assert wire.path.report().mtu == 1500


def test_a_card_that_corrupts_is_told_from_a_daemon_that_is_away(wire: Wire) -> None:
    wire.run(5)
    wire.passes = lambda probe: not probe.kind.startswith("check")
    wire.run(200)
    assert wire.path.report().checksum == "ok"
    wire.passes = lambda probe: probe.kind != "check"
    wire.run(200)
    assert wire.path.report().checksum == "bad"
    wire.passes = lambda probe: True
    wire.run(60)
    assert wire.path.report().checksum == "mended"


def test_lost_fragments_are_told_from_a_broken_path(wire: Wire) -> None:
    wire.run(5)
    wire.passes = lambda probe: probe.kind != "check-slow"
    wire.run(30)
    state = wire.path.report()
    assert (state.state, state.checksum, state.fragments) == ("ok", "ok", "lost")
    wire.passes = lambda probe: True
    wire.run(15)
    assert wire.path.report().fragments == "ok"


def test_an_idle_path_costs_few_packets(wire: Wire) -> None:
    wire.run(10)
    before = wire.count
    wire.run(60)
    assert wire.count - before <= 120


def view(**options: str) -> NetView:
    plain = network("back", 4097, 1)
    return NetView(
        [
            node(ME, HOST, back="10.0.1.2"),
            node(OTHER, PA, back="10.0.1.3"),
            node("third", "172.28.1.13", front="10.0.2.3"),
            msgspec.structs.replace(plain, driver_opts=options),
        ]
    )


@pytest.mark.parametrize(
    ("measured", "options", "mtu"),
    [
        ({}, {}, 1450),
        ({PA: 1400}, {}, 1350),
        ({PA: 1400, "172.28.1.13": 1000}, {}, 1350),  # that host is not on the network
        ({PA: 1400}, {MTU_OPTION: "1300"}, 1300),
        ({PA: 1400}, {MTU_OPTION: "9000"}, 1350),
        ({PA: 9000}, {}, 1450),  # our own interface takes no more
    ],
)
def test_containers_get_what_fits_every_path_of_their_network(
    measured: dict[str, int], options: dict[str, str], mtu: int
) -> None:
    assert plan_mtu(view(**options), "back", ME, 1500, measured, 50) == mtu


@given(st.integers(FLOOR6, 9000), st.integers(FLOOR6, 9000))
def test_over_ipv6_the_search_ends_where_every_host_must_take_it(real: int, widest: int) -> None:
    wire = Wire(Path("b", "fd00::12", widest, 0.0))
    sizes: set[int] = set()
    wire.passes = lambda probe: sizes.add(probe.size) or probe.size <= real  # type: ignore[func-returns-value]
    wire.run(20)
    assert wire.path.report().mtu == min(real, widest)
    assert min(sizes) >= 146, "a probe with two IPv6 addresses is no shorter"


def test_over_ipv6_no_fragments_are_tried(wire: Wire) -> None:
    """The kernel makes none of what it tunnels over IPv6: nothing is wrong when none arrive."""
    six, kinds = Wire(Path("b", "fd00::12", 1500, 0.0)), set[str]()
    for one in (six, wire):
        kinds.clear()
        one.passes = lambda probe: kinds.add(probe.kind) or probe.size <= 1500  # type: ignore[func-returns-value]
        one.run(60)
        assert ("check-slow" in kinds) == (one is wire)
    assert (six.path.report().checksum, six.path.report().fragments) == ("ok", "")
    assert wire.path.report().fragments == "lost"
