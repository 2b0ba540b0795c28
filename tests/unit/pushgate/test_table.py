"""Lines for people: widths in a terminal's cells, and what is left out where there is no room."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from pushgate.table import Column, cut, duration, table

COLUMNS = (Column("name"), Column("sent", 1, is_number=True), Column("note", 2))
ROWS = [["漢字漢字", "7", "x"], ["สวัสดี", "1,234", "-"], ["alice\x1b[2J\u202e", "-", ""]]


def test_columns_stand_under_each_other_in_cells() -> None:
    titles, chinese, thai, _ = table(COLUMNS, ROWS, cells=None)
    column = cell_len(titles.partition("note")[0])
    assert cell_len(chinese.rpartition("x")[0]) == column
    assert cell_len(thai.rpartition("-")[0]) == column
    assert chinese.startswith("漢字漢字")


def test_no_name_takes_the_terminal_over() -> None:
    *_, hostile = table(COLUMNS, ROWS, cells=None)
    assert hostile.startswith("alice\ufffd[2J\ufffd")
    *_, joined = table(COLUMNS, [["می\u200cخواهم", "", ""]], cells=None)
    assert joined == "می\u200cخواهم"


@pytest.mark.parametrize("cells", [1, 5, 8, 13, 20, 40, 80])
def test_no_line_is_wider_than_the_terminal(cells: int) -> None:
    assert all(cell_len(line) <= cells for line in table(COLUMNS, ROWS, cells=cells))


def test_a_narrow_terminal_loses_columns_by_their_rank_and_then_cuts_names() -> None:
    rows = [["gateway-5d8f7c-xk2lp", "7", "note"]]
    assert table(COLUMNS, rows, cells=80)[1] == "gateway-5d8f7c-xk2lp     7  note"
    assert table(COLUMNS, rows, cells=24)[1] == "gatew…-xk2lp     7  note"
    assert table(COLUMNS, rows, cells=23)[1] == "gateway-…7c-xk2lp     7"
    assert table(COLUMNS, rows, cells=16)[1] == "gateway…7c-xk2lp"
    assert table(COLUMNS, rows, cells=10)[1] == "gatew…-xk…"
    assert table(COLUMNS, [["gw-0", "7", "x"]], cells=16)[1] == "gw-0     7  x"


def test_a_wide_name_is_cut_within_its_cells() -> None:
    *_, line = table(COLUMNS, [["漢字漢字漢字漢字漢", "7", "x"]], cells=18)
    assert line == "漢字…漢字漢      7"


def test_a_cut_never_splits_a_wide_character() -> None:
    assert cut("漢字漢字", 8) == "漢字漢字"
    assert cut("漢字漢字", 6) == "漢字…"
    assert cell_len(cut("漢字漢字", 7)) <= 7
    assert cut("漢字漢字", None) == "漢字漢字"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (60, "1m 0s"), (3_725, "1h 2m"), (90_061, "1d 1h"), (-1, "0s")],
)
def test_a_duration_has_its_two_greatest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
