"""Checks run at once; one that is late, or fails, is a finding and holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from pushgate.doctor.deadlines import Check, findings_of
from pushgate.doctor.finding import Finding, Severity, Subject

pytestmark = pytest.mark.anyio

HERE = Subject("here")
THERE = Subject("there")


async def well() -> Sequence[Finding]:
    return [HERE.ok("well")]


async def never() -> Sequence[Finding]:
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def failing() -> Sequence[Finding]:
    raise KeyError("a library's")


async def cancelling_itself() -> Sequence[Finding]:
    raise asyncio.CancelledError


async def test_a_check_without_an_end_is_named_and_the_others_count() -> None:
    late, fine = await findings_of([Check(THERE, never, 0.05), Check(HERE, well)])
    assert (late.subject, late.severity) == ("there", Severity.FAULT)
    assert "within 0.05 s" in late.what
    assert fine == HERE.ok("well")


async def test_a_check_that_swallows_its_cancellation_holds_nobody_up() -> None:
    release = asyncio.Event()

    async def stubborn() -> Sequence[Finding]:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return []

    async with asyncio.timeout(5):
        late, fine = await findings_of([Check(THERE, stubborn, 0.05), Check(HERE, well)])
    release.set()
    assert (late.subject, fine) == ("there", HERE.ok("well"))


@pytest.mark.parametrize(
    ("find", "words"), [(failing, "KeyError"), (cancelling_itself, "CancelledError")]
)
async def test_a_check_that_fails_by_itself_is_named_and_the_others_count(
    find: Callable[[], Awaitable[Sequence[Finding]]], words: str
) -> None:
    failed, fine = await findings_of([Check(THERE, find), Check(HERE, well)])
    assert (failed.subject, failed.severity) == ("there", Severity.FAULT)
    assert words in failed.what
    assert fine == HERE.ok("well")
