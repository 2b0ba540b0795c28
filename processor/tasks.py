"""Tasks that messages depend on: where such a task fails, the process ends.

A crash is safe: another processor repeats the messages. A task that is gone unnoticed would leave
its messages without an outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from processor.errors import ProcessorError


class NotRunning(ProcessorError):
    """A task was to start before the task group was entered."""


#: Starts a task.
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Tasks:
    """Makes tasks of a task group that is entered later than `spawn` is handed out."""

    def __init__(self) -> None:
        self.group: asyncio.TaskGroup | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the group; an error of the task ends the process.

        Raises:
            NotRunning: there is no group yet.
        """
        if self.group is None:
            raise NotRunning("no task can start before the processor runs")
        return self.group.create_task(work)
