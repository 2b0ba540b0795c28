"""What accompanies a server from its start to its end: words to the supervisor, and reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from pushgate.reloads import Reloads
from pushgate.supervisor import Supervisor


class Attended(Protocol):
    """A gateway, a processor, or the parent of workers."""

    async def started(self) -> None:
        """Return once the server is ready."""

    async def until_stopped(self) -> None:
        """Return once the server has begun to leave."""


def _no_successor() -> None:
    return None


async def attend(
    server: Attended,
    supervisor: Supervisor,
    *,
    reloads: Reloads | None = None,
    successor: Callable[[], int | None] = _no_successor,
) -> None:
    """Tell the supervisor how a server is, and take reloads while the server is ready.

    `successor` gives the process that has taken over from a server that leaves; the supervisor
    hears of that process before this one ends. Returns once the running reload has ended too.
    """
    started = asyncio.create_task(server.started())
    stopped = asyncio.create_task(server.until_stopped())
    await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        if reloads is not None:
            await reloads.listen()
        supervisor.ready()
        await stopped
    started.cancel()
    heir = successor()
    if heir is None:
        supervisor.stopping()
    else:
        supervisor.succeeded_by(heir)
    if reloads is not None:
        await reloads.end()
