"""In which order services start (depends_on). Pure graph work.

Owns the order and the search for circles. Must not know what is waited for, nor how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Graph = Mapping[str, Iterable[str]]  # name -> names it waits for; unknown ones are ignored


def start_order(graph: Graph) -> list[str]:
    """Every name after those it waits for, otherwise as given. There must be no circle."""
    found: list[str] = []

    def visit(name: str) -> None:
        if name in found or name not in graph:
            return
        for other in graph[name]:
            visit(other)
        found.append(name)

    for name in graph:
        visit(name)
    return found


def find_circle(graph: Graph) -> list[str]:
    """Names that wait for each other, each for the next; [] when there are none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done or name not in graph:
            return []
        for other in graph[name]:
            circle = visit(other, [*trail, name])
            if circle:
                return circle
        done.add(name)
        return []

    for name in graph:
        circle = visit(name, [])
        if circle:
            return circle
    return []
