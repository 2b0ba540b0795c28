"""docs/operations.md has every event that the code logs, with its level, and no other.

The events are read from the code's syntax trees. An event is a fixed text: what differs from line
to line is in fields, so that lines can be counted and filtered by event.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.markdown import ROOT, Page, codes

PAGE: Final = Page(ROOT / "docs" / "operations.md")
PACKAGES: Final = ("gateway", "processor", "registry", "pushgate")
LEVELS: Final = {"debug", "info", "warning", "error", "exception"}
#: Methods that log the event that they are called with, by the file.
HELPERS: Final = {"processor/sending/reach.py": "_log_error"}
#: The one event whose level is another line's.
LEFT_OUT: Final = ("lines were left out", "that of the lines")


def test_every_event_is_in_the_table_with_its_level_and_no_other() -> None:
    documented = [
        pair
        for heading in (
            "Of every process",
            "Of gateways",
            "Of processors",
            "Of `gateway --workers`",
        )
        for events, levels, _ in PAGE.rows(heading)
        for pair in zip(codes(events), spread(levels.split(", "), len(codes(events))), strict=True)
    ]
    assert len(documented) == len(set(documented)), "an event has two rows"
    made = {
        (event, "error" if level == "exception" else level)
        for name in PACKAGES
        for file in (ROOT / name).rglob("*.py")
        for level, event in logged(file)
    }
    assert {*documented} ^ {*made, LEFT_OUT} == set()


def test_a_text_that_is_made_of_data_is_found(tmp_path: Path) -> None:
    for said in ('log.info(f"{name} is here")', "log.error(event, reason=1)"):
        file = tmp_path / "logs.py"
        file.write_text(said)
        with pytest.raises(AssertionError, match=r"logs\.py:1"):
            list(logged(file))


def spread(levels: list[str], events: int) -> list[str]:
    """Return a level for each event of a row: the row has one for all, or one for each."""
    return levels * events if len(levels) == 1 else levels


def logged(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the level and the event of each call that logs."""
    helper = HELPERS.get(file.relative_to(ROOT).as_posix()) if file.is_relative_to(ROOT) else None
    tree = ast.parse(file.read_text(), file)
    of_helper = {
        call
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == helper
        for call in ast.walk(function)
    }
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        is_log = isinstance(call.func.value, ast.Name) and call.func.value.id == "log"
        if (is_log and call.func.attr in LEVELS and call not in of_helper) or (
            call.func.attr == helper
        ):
            event = call.args[0]
            at = f"{file.name}:{call.lineno}"
            assert isinstance(event, ast.Constant), f"{at}: an event is a fixed text"
            yield ("error" if call.func.attr == helper else call.func.attr), str(event.value)
