"""The command line's tools beside gateways and processors that tests have started."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pushgate.embedded import tied_to_parent
from tests.support.processes import INTERNAL_SECRET, inherited

#: For a tool to end, or to say something.
SECONDS: Final = 20.0


def environment(redis_url: str, **settings: object) -> dict[str, str]:
    """Give the variables of a tool."""
    own = {"PUSHGATE_REDIS_URL": redis_url, "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET}
    return own | {f"PUSHGATE_{name.upper()}": str(v) for name, v in settings.items()}


@dataclass(frozen=True, slots=True)
class Ran:
    """The end of a tool."""

    exit_code: int
    stdout: str
    stderr: str


async def tool(redis_url: str, *words: str, **settings: object) -> Ran:
    """Run a tool to its end, in a process of its own: a thread's loop may end in another thread.

    uvloop closes what a loop has left when it is collected, in whatever thread that is, and the
    loop of a later test then can't be closed.
    """
    process = await asyncio.create_subprocess_exec(
        *tied_to_parent([sys.executable, "-m", "pushgate", *words]),
        env=_inherited() | environment(redis_url, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, stdout.decode(), stderr.decode())


@contextmanager
def running(redis_url: str, *words: str, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """Give a tool that goes on, in a process of its own whose output is a pipe."""
    command = tied_to_parent([sys.executable, "-m", "pushgate", *words])
    with subprocess.Popen(
        command, env=_inherited() | environment(redis_url, **settings), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def on_terminal(redis_url: str, *words: str, columns: int, rows: int) -> bytes:
    """Run a tool to its end on a terminal of this size; give all that it shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    with subprocess.Popen(
        tied_to_parent([sys.executable, "-m", "pushgate", *words]),
        env=_inherited() | environment(redis_url) | {"TERM": "xterm-256color"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            shown = _read_to_end(ours)
            assert process.wait(SECONDS) == 0, shown
        finally:
            process.kill()
            os.close(ours)
    return shown


def _read_to_end(terminal: int) -> bytes:
    """Read what is shown until nobody has the terminal open; fail where that takes too long."""
    shown = b""
    deadline = time.monotonic() + SECONDS
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            shown += os.read(terminal, 65_536)
        except OSError:  # Linux: nobody has the terminal open any more
            return shown
    raise AssertionError(f"not ended within {SECONDS:g} s: {shown!r}")


def _inherited() -> dict[str, str]:
    # A worker of pytest-xdist has COLUMNS, which programs believe before the terminal.
    return {name: v for name, v in inherited().items() if name not in ("COLUMNS", "LINES")}
