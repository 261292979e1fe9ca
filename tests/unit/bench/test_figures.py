"""What a reader of the table relies on: ratios pair rounds, gaps stay gaps, and a missed target says so."""

from __future__ import annotations

import pytest
from measure.figures import (
    Figure,
    Peer,
    Target,
    as_document,
    is_measured,
    ratio_of,
    render,
    rows_of,
    show_value,
)
from measure.peer import packages_to_fetch


def figure(ours: list[float | None], theirs: list[float | None], target: Target | None = None) -> Figure:
    return Figure("request-response", "/s", [Peer("docker", target, theirs)], ours, group="network")


def test_ratio_pairs_rounds_instead_of_dividing_medians() -> None:
    # The machine was four times as busy in the second round, for both sides alike.
    assert ratio_of([100.0, 25.0, 300.0], [50.0, 12.5, 100.0]) == 2.0


def test_a_round_that_one_side_missed_counts_for_neither() -> None:
    assert ratio_of([100.0, None, 90.0], [50.0, 10.0, None]) == 2.0


def test_a_figure_without_any_common_round_is_not_measured() -> None:
    assert not is_measured(figure([1.0, None], [None, 2.0]))
    assert not is_measured(figure([], []))
    assert is_measured(figure([1.0], [2.0]))


def test_a_peer_that_measured_zero_gives_no_ratio() -> None:
    assert ratio_of([1.0], [0.0]) is None


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [(Target(at_least=1.8), 1.79, "NO"), (Target(at_least=1.8), 1.8, "yes"), (Target(at_most=1), 1.01, "NO")],
)
def test_a_target_is_met_or_not(target: Target, ratio: float, met: str) -> None:
    assert rows_of(figure([ratio], [1.0], target))[0][-1] == met


def test_a_target_of_what_was_not_measured_is_neither_met_nor_missed() -> None:
    row = rows_of(figure([None], [1.0], Target(at_least=1)))[0]
    assert (row[1], row[4], row[-1]) == ("not measured", "-", "?")


def test_table_names_a_figure_once_and_every_peer() -> None:
    both = Figure(
        "TCP", "Gb/s", [Peer("docker", None, [5.0]), Peer("bare", None, [20.0])], [10.0], group="network"
    )
    lines = render([both]).splitlines()
    assert [line.count("TCP") for line in lines[2:]] == [1, 0]
    assert "2.00" in lines[2] and "0.50" in lines[3]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.2345, "s", "234 ms"),
        (16.257, "s", "16.26 s"),
        (8.5, "Gb/s", "8.50 Gb/s"),
        (169_123.0, "packets/s", "169k packets/s"),
        (9067.2, "/s", "9067 /s"),
    ],
)
def test_values_read_naturally(value: float, unit: str, text: str) -> None:
    assert show_value(value, unit) == text


def test_document_keeps_every_sample_and_the_verdict() -> None:
    document = as_document(figure([4.0, None], [2.0, 1.0], Target(at_least=1.5)))
    assert document["overlace"] == {"median": 4.0, "samples": [4.0, None]}
    (peer,) = document["peers"]  # type: ignore[misc]
    assert (peer["ratio"], peer["met"], peer["target"]) == (2.0, True, ">= 1.5")


def test_packages_are_those_apt_would_install() -> None:
    said = (
        "Inst libip4tc2 (1.8.9-2 Debian:12/stable [amd64])\n"
        "Inst docker.io (20.10.24 Debian:12/stable [amd64]) []\n"
        "Conf docker.io (20.10.24 Debian:12/stable [amd64])\n"
    )
    assert packages_to_fetch(said) == ["libip4tc2", "docker.io"]
