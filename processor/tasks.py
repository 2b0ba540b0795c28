"""Tasks that messages depend on: where one fails, the process ends, and another repeats its work.

A crash repeats messages; a task that is gone unnoticed would leave its messages without an outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from processor.errors import ProcessorError


class NotRunning(ProcessorError):
    """A task was to start outside of the group's life."""


Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Tasks:
    """Makes tasks of a group that is entered later."""

    def __init__(self) -> None:
        self.group: asyncio.TaskGroup | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the group."""
        if self.group is None:
            raise NotRunning("no task can start before the processor runs")
        return self.group.create_task(work)
