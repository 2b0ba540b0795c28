"""The process at the other end of a take-over, which is killed where it hangs."""

from __future__ import annotations

import contextlib
import os
import select
import signal


class PeerProcess:
    """A process by its pid descriptor: the kernel never gives that to another process.

    A process that hangs keeps its clients, who get nothing. Killed, it gives them back: they
    reconnect at once, and resume.
    """

    def __init__(self, pid: int) -> None:
        """`pid` is 0 for a process of another namespace, which can't be killed."""
        self.pid = pid
        self._descriptor: int | None = None
        if pid:
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(pid)

    def ends(self, *, within_seconds: float) -> bool | None:
        """Wait until the process has ended, for a moment; None where it is not known."""
        if self._descriptor is None:
            return None
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(within_seconds * 1_000))

    def kill(self) -> None:
        """End the process at once, if it is known. Harmless where it has ended."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Forget the process. Harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
