"""A figure: what was measured on overlace and on its peers, as medians and paired ratios, and how it is shown.

Pure: must not measure, read clocks or touch files. A ratio is the median of the ratios of the rounds, since the
two sides of one round saw the same machine at nearly the same moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

Samples = list[float | None]  # one per round; None: could not be measured


class Target(msgspec.Struct, frozen=True):
    """What the ratio should be. Figures where less is better have `at_most`."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (
            self.at_most is None or ratio <= self.at_most
        )

    def __str__(self) -> str:
        parts = [f">= {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"<= {self.at_most:g}"] if self.at_most is not None else []
        return " ".join(parts) or "-"


class Peer(msgspec.Struct):
    """One thing overlace is compared with."""

    name: str
    target: Target | None = None
    samples: Samples = msgspec.field(default_factory=list)


class Figure(msgspec.Struct):
    """One row per peer. `unit` is of the samples: s, /s, Gb/s, packets/s."""

    name: str
    unit: str
    peers: list[Peer]
    samples: Samples = msgspec.field(default_factory=list)
    group: str = ""
    less_is_better: bool = False

    def peer(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)


def median_of(samples: Sequence[float | None]) -> float | None:
    """The median of what could be measured."""
    known = [each for each in samples if each is not None]
    return median(known) if known else None


def paired_ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Ours divided by theirs, for the rounds that have both."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]


def ratio_of(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    ratios = paired_ratios(ours, theirs)
    return median(ratios) if ratios else None


def spread_of(ratios: Sequence[float]) -> float | None:
    """Half of the distance between lowest and highest ratio, relative to the median: how far to trust it."""
    if len(ratios) < 2:
        return None
    return (max(ratios) - min(ratios)) / 2 / median(ratios)


def is_measured(figure: Figure) -> bool:
    """True when there is a ratio to every peer."""
    return all(ratio_of(figure.samples, peer.samples) is not None for peer in figure.peers)


def show_value(value: float | None, unit: str) -> str:
    """Three digits that matter, and the unit."""
    if value is None:
        return "not measured"
    if unit == "Gb/s":
        return f"{value:.2f} {unit}"
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    for limit, letter in ((1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e6 if letter == 'M' else 1e3):.3g}{letter} {unit}"
    return f"{value:.4g} {unit}"


def rows_of(figure: Figure) -> list[tuple[str, ...]]:
    """(figure, overlace, peer, peer's value, ratio, spread, target, met) for each peer."""
    rows: list[tuple[str, ...]] = []
    for peer in figure.peers:
        ratios = paired_ratios(figure.samples, peer.samples)
        ratio = ratio_of(figure.samples, peer.samples)
        spread = spread_of(ratios)
        met = "-"
        if peer.target is not None:
            met = "?" if ratio is None else "yes" if peer.target.met_by(ratio) else "NO"
        rows.append(
            (
                figure.name,
                show_value(median_of(figure.samples), figure.unit),
                peer.name,
                show_value(median_of(peer.samples), figure.unit),
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if spread is None else f"±{spread:.0%}",
                str(peer.target) if peer.target else "-",
                met,
            )
        )
    return rows


HEAD = ("figure", "overlace", "peer", "peer's", "ratio", "spread", "target", "met")


def render(figures: Sequence[Figure]) -> str:
    """A plain table, one block per group."""
    blocks = []
    rows_by_group: dict[str, list[tuple[str, ...]]] = {}
    for figure in figures:
        rows_by_group.setdefault(figure.group, []).extend(rows_of(figure))
    every = [HEAD, *(row for rows in rows_by_group.values() for row in rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(HEAD))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if column in (1, 3, 4, 5) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    for group, rows in rows_by_group.items():
        shown, previous = [], None
        for row in rows:  # a figure with several peers is named once
            shown.append(("", "", *row[2:]) if row[:2] == previous else row)
            previous = row[:2]
        blocks.append("\n".join([f"-- {group} --", line(HEAD), *map(line, shown)]))
    return "\n\n".join(blocks)


def as_document(figure: Figure) -> dict[str, object]:
    """The figure for the JSON: samples as measured, medians, ratios."""
    return {
        "name": figure.name,
        "group": figure.group,
        "unit": figure.unit,
        "less_is_better": figure.less_is_better,
        "overlace": {"median": median_of(figure.samples), "samples": figure.samples},
        "peers": [
            {
                "name": peer.name,
                "median": median_of(peer.samples),
                "samples": peer.samples,
                "ratio": ratio_of(figure.samples, peer.samples),
                "ratios": paired_ratios(figure.samples, peer.samples),
                "target": str(peer.target) if peer.target else None,
                "met": None
                if peer.target is None or (ratio := ratio_of(figure.samples, peer.samples)) is None
                else peer.target.met_by(ratio),
            }
            for peer in figure.peers
        ],
    }
