"""Plain text for people: headings, tables, commands and their output.

Owns how the demo looks. Must not decide what it shows.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

WIDTH = 110


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def heading(number: int, text: str) -> None:
    title = f"── {number}. {text} "
    print(f"\n{_bold(title + '─' * (WIDTH - len(title)))}\n", flush=True)


def say(text: str) -> None:
    """A paragraph."""
    print(textwrap.fill(text, WIDTH), flush=True)


def command(where: str, words: Sequence[str], output: str = "") -> None:
    """A command as someone typed it on `where`, and what it printed."""
    print(_bold(f"{where}$ {' '.join(words)}"))
    for line in output.rstrip().splitlines():
        print(f"    {line.rstrip()}")
    print(flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
    right = [all(row[column].replace(".", "", 1).isdigit() for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        return "    " + "  ".join(parts).rstrip()

    print(_bold(line(list(header))))
    for row in cells:
        print(line(row))
    print(flush=True)
