"""What works beside a drill of alerts: its failure is the drill's, and its end is no failure."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.alerts import working

pytestmark = pytest.mark.anyio


async def work_on() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ConnectionResetError


async def test_work_that_fails_ends_the_drill() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(5), working(work_on(), fail()):
            await work_on()
    assert raised.group_contains(ConnectionResetError)


async def test_work_that_goes_on_ends_with_the_drill() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await work_on()
        finally:
            ended.set()

    async with asyncio.timeout(5), working(work()):
        await asyncio.sleep(0)
    assert ended.is_set()
