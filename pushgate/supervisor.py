"""Words for the supervisor of a process: systemd, or the process of pushgate that started it.

The words are sd_notify(3)'s. They go to systemd in datagrams to $NOTIFY_SOCKET, and to a process of
pushgate on standard input, which is a stream socket then (pushgate/launch.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final, Self

#: The variable of sd_notify(3). A leading @ of its value stands for the NUL of an abstract address.
NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"
READY: Final = b"READY=1\n"
MAINPID: Final = b"MAINPID="


class Supervisor:
    """The supervisors of this process, from none to two. All get the same words."""

    def __init__(self, *sockets: socket.socket) -> None:
        """`sockets` are connected, and closed with the last word."""
        self._sockets = sockets

    @classmethod
    def of_process(cls, environment: Mapping[str, str], *, launched: bool = False) -> Self:
        """Return systemd, where `environment` has its socket, and the starter of the process.

        `launched` says whether a process of pushgate is the starter.
        """
        sockets = []
        if launched:
            sockets.append(socket.socket(fileno=os.dup(0)))
        if address := environment.get(NOTIFY_SOCKET):
            systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                systemd.connect(f"\0{address[1:]}" if address[0] == "@" else address)
            sockets.append(systemd)
        return cls(*sockets)

    def ready(self) -> None:
        """Say that the process serves: after the start, and after every reload."""
        self._send(READY)

    def reloading(self, monotonic_seconds: float) -> None:
        """Say that a reload began at `monotonic_seconds` of the monotonic clock."""
        self._send(b"RELOADING=1\nMONOTONIC_USEC=%d\n" % (monotonic_seconds * 1e6))

    def succeeded_by(self, pid: int) -> None:
        """Say that process `pid` has taken over: systemd's main process from now on.

        The last word of this process. The successor has words of its own.
        """
        self._send(MAINPID + b"%d\n" % pid)
        self.close()

    def stopping(self) -> None:
        """Say that the process leaves without a successor: the last word."""
        self._send(b"STOPPING=1\n")
        self.close()

    def close(self) -> None:
        """Say nothing more. Harmless when repeated."""
        for supervisor in self._sockets:
            supervisor.close()
        self._sockets = ()

    def _send(self, message: bytes) -> None:
        for supervisor in self._sockets:
            # A process serves on where no supervisor listens.
            with contextlib.suppress(OSError):
                supervisor.send(message)
