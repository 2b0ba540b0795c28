"""An accessory without a broker: nobody waits, and what is kept is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from processor import metrics
from processor.outcomes import accessory as module
from processor.outcomes.accessory import Accessory
from processor.outcomes.writer import Row
from processor.settings import ProcessorSettings
from processor.tasks import Tasks
from tests.support.clients import eventually
from tests.support.processes import free_port

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def unreachable() -> AsyncIterator[Accessory]:
    """Give an accessory that is in trouble, as no broker is there."""
    settings = ProcessorSettings(
        kafka_bootstrap=f"127.0.0.1:{free_port()}", internal_secret=SecretStr("s" * 32)
    )
    async with asyncio.TaskGroup() as group:
        tasks = Tasks()
        tasks.group = group
        accessory = Accessory(settings, "t.dead", name="dead-letter", spawn=tasks.spawn)
        accessory.start()
        await eventually(lambda: accessory.warning, "it is in trouble")
        yield accessory
        await accessory.stop()


def lost() -> float:
    return float(metrics.ACCESSORY_LOST.labels("dead-letter")._value.get())


async def test_beyond_the_bound_rows_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 3)
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.0)
    before = lost()
    async with unreachable() as accessory:
        async with asyncio.timeout(1):
            for _ in range(5):
                await accessory.write([Row(b"u", b"x")])
        assert lost() - before == 2
        assert "3 records wait, 2 are lost" in accessory.warning
        assert "t.dead" in accessory.warning
    assert lost() - before == 5, "what is left at the end is counted too"


async def test_the_same_trouble_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.001,))
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.0)
    lines: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda event, **_: lines.append(event))
    now = [0.0]
    async with unreachable() as accessory:
        monkeypatch.setattr(accessory, "_clock", lambda: now[0])
        attempts = metrics.ACCESSORY_ERRORS["dead-letter"]._value
        await accessory.write([Row(b"u", b"x")])
        first = attempts.get()
        await eventually(lambda: attempts.get() > first + 5, "several attempts")
        assert len(lines) == 1
        now[0] = 1e9
        await eventually(lambda: len(lines) > 1, "a line in the next minute")
