"""systemd's part in the life of a process whose starter has ended: such orphans are adopted."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def adopting() -> Iterator[None]:
    """Make orphans among the descendants children of this process, and end them at the end."""
    before = children()
    _adopt(1)
    try:
        yield
    finally:
        _adopt(0)
        for pid in children() - before:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def children() -> set[int]:
    """Give the process ids of this process's children, zombies too."""
    listed = subprocess.Popen(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], stdout=subprocess.PIPE, text=True
    )
    said, _ = listed.communicate()
    return {int(pid) for pid in said.split()} - {listed.pid}


def _adopt(whether: int) -> None:
    failed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, whether, 0, 0, 0)
    assert not failed, os.strerror(ctypes.get_errno())
