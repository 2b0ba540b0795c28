"""The bound of a server's stop: after it the process ends, and says what was still running.

A supervisor that waits without an end would wait for ever; so would a rolling update.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, Protocol

import structlog

#: Exit status of a process that has not left in time.
NOT_LEFT: Final = 1
#: Tasks that are named in the error.
_MOST_NAMED: Final = 20

log = structlog.get_logger("pushgate")


class Leaves(Protocol):
    """A server, as seen from here."""

    @property
    def leave_seconds(self) -> float:
        """How long leaving takes at most, from `stop` to the end of `run`."""

    async def until_stopped(self) -> None:
        """Return once `stop` has been called."""


async def bound_leaving(server: Leaves) -> None:
    """End the process where the server has not left in `leave_seconds` after `stop`.

    The bound holds behind `run` too, while the event loop ends what is left.
    """
    await server.until_stopped()
    seconds = server.leave_seconds
    asyncio.get_running_loop().call_later(seconds, _end_process, seconds)


def _end_process(seconds: float) -> None:
    tasks = asyncio.all_tasks()
    log.error(
        "not left in time; the process ends now",
        seconds=seconds,
        tasks=len(tasks),
        running=[_named(task) for task in list(tasks)[:_MOST_NAMED]],
    )
    sys.stderr.flush()
    os._exit(NOT_LEFT)


def _named(task: asyncio.Task[Any]) -> str:
    """Return the names of the coroutines that a task is in, and the place where it waits."""
    coroutines = list(_coroutines(task))
    names = " > ".join(getattr(each, "__qualname__", "?") for each in coroutines)
    frame = getattr(coroutines[-1], "cr_frame", None)
    return names if frame is None else f"{names} at {frame.f_code.co_filename}:{frame.f_lineno}"


def _coroutines(task: asyncio.Task[Any]) -> Iterator[object]:
    """Yield a task's coroutine, the coroutine that it awaits, and so on."""
    coroutine: object = task.get_coro()
    yield coroutine
    while getattr(awaited := getattr(coroutine, "cr_await", None), "cr_frame", None) is not None:
        coroutine = awaited
        yield coroutine
