"""Standard output as a pipe that may be closed at its other end, as by `| head -1`."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import uvloop

_STDOUT: Final = 1  # the descriptor of standard output


def run_while_read(work: Coroutine[Any, Any, None]) -> None:
    """Run a tool's work until it is done, or until the pipe is closed that it writes to.

    Ctrl-C ends it with status 130, as shells expect.
    """

    async def bounded() -> None:
        async with _while_read():
            await work

    try:
        uvloop.run(bounded())
    except BrokenPipeError:
        # Python flushes standard output into nothing at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    except KeyboardInterrupt:
        sys.exit(130)


@asynccontextmanager
async def _while_read() -> AsyncIterator[None]:
    """End the body, with BrokenPipeError, when the pipe is closed that is written to.

    A write would say so too, but the next message may never come.
    """
    if not stat.S_ISFIFO(os.fstat(_STDOUT).st_mode):
        yield
        return
    loop, body = asyncio.get_running_loop(), asyncio.current_task()
    is_closed = False

    def closed() -> None:
        nonlocal is_closed
        is_closed = True
        loop.remove_reader(_STDOUT)
        if body is not None:
            body.cancel()

    loop.add_reader(_STDOUT, closed)  # nothing can be read there: it is the other end's close
    try:
        yield
    except asyncio.CancelledError:
        if is_closed:
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(_STDOUT)
