"""Lines for people: names in any alphabet, in columns of a terminal's cells.

A terminal's cell is not a character: 漢 takes two cells, a combining mark takes none.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from pushgate.printable import printable

_BETWEEN: Final = "  "
_CUT: Final = "…"
#: The fewest cells that a name is cut to.
_LEAST_CELLS: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, and what becomes of it on a narrow terminal.

    Columns with the highest `rank` are left out first; a column of rank 0 always stays.
    """

    title: str
    rank: int = 0
    is_number: bool = False


def cut(text: str, cells: int | None) -> str:
    """Return a text that takes `cells` at most, with an ellipsis if it is cut; None: any number."""
    if cells is None or cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)).rstrip() + _CUT


def _cut_within(text: str, cells: int) -> str:
    """Return a text cut in its middle: the names of pods begin alike and differ at their ends."""
    if cell_len(text) <= cells:
        return text
    end = text[-(cells // 2) :]
    while cell_len(end) > cells // 2:
        end = end[1:]
    return set_cell_size(text, cells - 1 - cell_len(end)).rstrip() + _CUT + end


def terminal_cells() -> int | None:
    """Return how many cells a line of standard output has; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def duration(seconds: float) -> str:
    """Return a time in its two greatest units: 5s, 3m 20s, 4h 5m, 12d 3h."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def counted(number: float, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, cells: int | None
) -> list[str]:
    """Return the lines of a table: titles, then the rows, `cells` wide at most.

    None is without a limit. On a narrow terminal columns are left out by their rank, and then the
    first column is cut.
    """
    lines = [[column.title for column in columns], *([printable(text) for text in r] for r in rows)]
    widths = [max(cell_len(line[n]) for line in lines) for n in range(len(columns))]
    kept = _kept(columns, widths, cells)
    if cells is not None:
        excess = _total([widths[n] for n in kept]) - cells
        widths[kept[0]] = max(_least(widths[kept[0]]), widths[kept[0]] - max(0, excess))
    laid_out = (
        _BETWEEN.join(_padded(line[n], widths[n], columns[n]) for n in kept) for line in lines
    )
    return [cut(line.rstrip(), cells) for line in laid_out]


def _kept(columns: Sequence[Column], widths: Sequence[int], cells: int | None) -> list[int]:
    """Return the numbers of the columns that have room; the first column may be cut for them."""
    kept = list(range(len(columns)))
    by_rank = sorted(kept, key=lambda n: columns[n].rank)
    while cells is not None and columns[by_rank[-1]].rank:
        least = [_least(widths[n]) if n == kept[0] else widths[n] for n in kept]
        if _total(least) <= cells:
            break
        kept.remove(by_rank.pop())
    return kept


def _least(width: int) -> int:
    return min(width, _LEAST_CELLS)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_BETWEEN) * (len(widths) - 1)


def _padded(text: str, cells: int, column: Column) -> str:
    text = _cut_within(text, cells)
    space = " " * (cells - cell_len(text))
    return space + text if column.is_number else text + space
