"""Pushes over one keep-alive connection, in raw HTTP: batches as processors do, or single messages.

An HTTP library would spend milliseconds a request on the core where the clients read.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Final, Self

import msgspec

from loadtest.processes import SECRET, LoadtestError

#: Media types and encoders by name; the stock servers take only JSON.
CODECS: Final[Mapping[str, tuple[str, ModuleType]]] = {
    "json": ("application/json", msgspec.json),
    "msgpack": ("application/msgpack", msgspec.msgpack),
}
_TIMEOUT_SECONDS: Final = 60.0
_READ_BYTES: Final = 262_144


class _Answer(msgspec.Struct):
    results: list[Any]


class Pusher:
    """Posts batches to one server. A context manager: on exit the connection is closed."""

    def __init__(
        self, port: int, *, codec: str = "json", tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect to 127.0.0.1; `codec` is a name in CODECS, `tls` trusts the certificate."""
        media_type, self._codec = CODECS[codec]
        self._head = (
            f"POST /push HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {media_type}\r\n"
            f"Authorization: Bearer {SECRET}\r\nContent-Length: "
        ).encode()
        plain = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._read = b""

    def request(self, batch: object) -> bytes:
        """Return the HTTP request for `batch`; the bytes may be sent any number of times."""
        body: bytes = self._codec.encode(batch)
        return self._head + b"%d\r\n\r\n" % len(body) + body

    def single(self, user: str, payload: bytes) -> bytes:
        """Return the HTTP request that pushes one payload to one user (`POST /push/{user}`)."""
        head = self._head.replace(b"POST /push ", b"POST /push/%b " % user.encode(), 1)
        return head + b"%d\r\n\r\n" % len(payload) + payload

    def send(self, request: bytes) -> None:
        """Send a request. The answer to the request before must have been read."""
        self._socket.sendall(request)

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._socket.fileno()

    def answered(self) -> bool:
        """Whether bytes of an answer can be read now; never waits."""
        return bool(self._poll.poll(0))

    def results(self) -> list[Any]:
        """Read the answer to the last request; return a result for every message.

        Raises:
            LoadtestError: the server refused the batch, or ended the connection.
        """
        answer: _Answer = self._codec.decode(self.body(), type=_Answer)
        return answer.results

    def body(self) -> bytes:
        """Read the answer to the last request; return its body.

        Raises:
            LoadtestError: the server refused the request, or ended the connection.
        """
        while (body := self._complete_body()) is None:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise LoadtestError("the server ended the connection that pushes")
            self._read += data
        self._read = b""
        return body

    def push(self, batch: Sequence[object]) -> list[Any]:
        """Push `batch` and return a result for every message, as `results` does."""
        self.send(self.request(batch))
        return self.results()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _complete_body(self) -> bytes | None:
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise LoadtestError(f"a push was refused: {self._read[:300]!r}")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or -1)
        if length < 0:
            raise LoadtestError(f"an answer without a length: {head!r}")
        return body if len(body) >= length else None
