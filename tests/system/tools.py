"""The command line's tools beside gateways and processors that tests have started."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pushgate.embedded import tied_to_parent
from tests.support.processes import INTERNAL_SECRET


def environment(redis_url: str, **settings: object) -> dict[str, str]:
    """Give the environment of a tool."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("PUSHGATE_")}
    own = {"PUSHGATE_REDIS_URL": redis_url, "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET}
    return inherited | own | {f"PUSHGATE_{name.upper()}": str(v) for name, v in settings.items()}


async def tool(redis_url: str, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, in a pipe."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pushgate", *words],
        env=environment(redis_url, **settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def running(redis_url: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Give a tool that goes on, in a pipe."""
    command = tied_to_parent([sys.executable, "-m", "pushgate", *words])
    with subprocess.Popen(
        command, env=environment(redis_url), text=True,
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
    # pytest-xdist sets COLUMNS for its workers, and programs believe it before the terminal.
    own = {n: v for n, v in environment(redis_url).items() if n not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(
        [sys.executable, "-m", "pushgate", *words],
        env=own | {"TERM": "xterm-256color"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux: nobody has the terminal open any more
            while chunk := os.read(ours, 65_536):
                shown += chunk
        os.close(ours)
        assert process.wait(20) == 0, shown
    return shown
