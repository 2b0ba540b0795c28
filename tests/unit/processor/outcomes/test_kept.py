"""The queue of rows for a topic: what is in flight stays, and the last writes go first."""

from __future__ import annotations

import asyncio

import pytest

from processor.outcomes.kept import KeptRows
from processor.outcomes.writer import Row

pytestmark = pytest.mark.anyio


def rows(*names: str) -> list[Row]:
    return [Row(None, name.encode()) for name in names]


async def test_writes_leave_in_their_order() -> None:
    kept = KeptRows()
    first, second = kept.append(rows("a", "bb")), kept.append(rows("c"))
    assert (kept.rows, kept.size) == (3, 4)
    assert await kept.first() is first
    kept.done()
    assert first.over.is_set()
    assert not second.over.is_set()
    assert await kept.first() is second
    kept.done()
    await kept.emptied()
    assert (kept.rows, kept.size) == (0, 0)


async def test_of_a_refused_write_the_rows_that_are_not_written_are_the_first_again() -> None:
    kept = KeptRows()
    write = kept.append(rows("a", "bb"))
    kept.append(rows("c"))
    await kept.first()
    kept.put_back(rows("bb"))
    assert not write.over.is_set()
    assert (kept.rows, kept.size) == (2, 3)
    assert await kept.first() is write
    assert write.rows == rows("bb")


async def test_writes_that_nobody_waits_for_go_together_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("processor.outcomes.kept.MOST_JOINED", 4)
    kept = KeptRows()
    for name in "abcdef":
        kept.append(rows(name, name))
    kept.let_go()
    awaited = kept.append(rows("g"))
    assert (await kept.first()).rows == rows("a", "a", "b", "b")
    kept.put_back(rows("b"))
    assert (await kept.first()).rows == rows("b", "c", "c", "d", "d")
    kept.done()
    assert (await kept.first()).rows == rows("e", "e", "f", "f")
    assert (kept.rows, kept.size) == (5, 5)
    kept.done()
    assert not awaited.over.is_set()
    assert await kept.first() is awaited
    kept.done()
    assert (kept.rows, kept.size) == (0, 0)


async def test_a_bound_of_rows_or_of_bytes_costs_the_last_writes() -> None:
    kept = KeptRows()
    for name in ("a", "b", "cccc"):
        kept.append(rows(name))
    assert kept.cut(10, 5) == 1
    assert kept.cut(1, 100) == 1
    assert (await kept.first()).rows == rows("a")


async def test_what_is_in_flight_is_neither_cut_nor_withdrawn() -> None:
    kept = KeptRows()
    flying, waiting = kept.append(rows("a")), kept.append(rows("b"))
    await kept.first()
    kept.withdraw(flying)
    kept.withdraw(waiting)
    kept.withdraw(waiting)
    assert kept.cut(0, 0) == 0
    assert kept.rows == 1


async def test_callers_stop_waiting_when_they_are_let_go() -> None:
    kept = KeptRows()
    write = kept.append(rows("a"))
    kept.let_go()
    async with asyncio.timeout(5):
        await write.over.wait()
    assert kept.rows == 1
