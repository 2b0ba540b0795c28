"""systemd's side of sd_notify(3): a socket that hears what a process says."""

import contextlib
import socket
import struct
from typing import Final, Self

_SECONDS: Final = 30.0
_CREDENTIALS: Final = struct.Struct("3i")
_BYTES: Final = 4_096


class NotifySocket:
    """The socket at an address as in NOTIFY_SOCKET; an @ begins an abstract one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)

    def next(self) -> str:
        """Give the next message."""
        return self.next_with_sender()[0]

    def next_with_sender(self) -> tuple[str, int]:
        """Give the next message, and the process id of its sender."""
        self._socket.settimeout(_SECONDS)
        message, [(_, _, credentials)], _, _ = self._socket.recvmsg(
            _BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
        )
        return message.decode(), _CREDENTIALS.unpack(credentials)[0]

    def words(self) -> list[str]:
        """Give the messages that are there."""
        words = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                words.append(self._socket.recv(_BYTES).decode())
        return words

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
