"""A crowd of raw clients in one thread: sockets in an epoll set and a light walk over the bytes.

No client library could keep up: what a message costs here is taken from the two cores that the
system under test has.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from loadtest.processes import LoadtestError

#: Handshakes under way at once.
_WINDOW: Final = 200
#: Clients of one source address: no run needs more ports than that, of one address or the next.
_PER_ADDRESS: Final = 10_000
_READ_BYTES: Final = 262_144
_CONNECT_SECONDS: Final = 30.0
#: Linux's; Python names it from 3.12 on.
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_KEY: Final = b64encode(bytes(16)).decode()
_PONG: Final = 0x8A

OnMessage = Callable[[bytes], None]


def _ignore(payload: bytes) -> None:
    """Take a payload that nobody looks at."""


class Client:
    """One connection, after its request was sent."""

    __slots__ = ("heartbeats", "messages", "on_message", "open", "rest")

    def __init__(self, on_message: OnMessage) -> None:
        self.on_message = on_message
        self.open = False
        self.rest = b""
        self.messages = 0
        self.heartbeats = 0

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return what a client says first."""
        raise NotImplementedError

    def feed(self, data: bytes) -> bytes:
        """Take inbound bytes; return what to answer."""
        data = self.rest + data if self.rest else data
        if self.open:
            return self.walk(data)
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            self.rest = head
            return b""
        if not head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")):
            raise LoadtestError(f"refused: {head[:200]!r}")
        self.open = True
        return self.walk(data)

    def walk(self, data: bytes) -> bytes:
        """Go through what follows the head; what is not whole yet goes to `rest`."""
        raise NotImplementedError


class WebSocketClient(Client):
    """Counts frames and answers pings."""

    __slots__ = ()

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the opening handshake."""
        return (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()

    def walk(self, data: bytes) -> bytes:
        """Take whole frames of at most 64 KiB, as a server sends them: unmasked."""
        at, end, answer = 0, len(data), b""
        while end - at >= 2:
            length, body = data[at + 1], at + 2
            if length == 126:
                if end - at < 4:
                    break
                length, body = data[at + 2] << 8 | data[at + 3], at + 4
            if body + length > end:
                break
            opcode = data[at] & 0x0F
            if opcode in (1, 2):
                self.messages += 1
                self.on_message(data[body : body + length])
            elif opcode == 9:
                self.heartbeats += 1
                answer += bytes((_PONG, 0x80 | length, 0, 0, 0, 0)) + data[body : body + length]
            elif opcode == 8:
                raise LoadtestError(f"the server closed: {data[body : body + length]!r}")
            at = body + length
        self.rest = data[at:]
        return answer


class SseClient(Client):
    """Counts `data:` lines and comments; chunk sizes of a chunked stream are lines it ignores."""

    __slots__ = ()

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the request."""
        return (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()

    def walk(self, data: bytes) -> bytes:
        """Take whole lines."""
        *lines, self.rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                self.messages += 1
                self.on_message(line[6:])
            elif line.startswith(b":"):
                self.heartbeats += 1
        return b""


class PollClient(Client):
    """Polls again whenever it is answered; the first poll does not wait, so it shows a start."""

    __slots__ = ("_again",)

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__(on_message)
        self._again = b""

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the first poll."""
        authorization = f"Authorization: Bearer {token}\r\n\r\n"
        return f"GET {path}?wait=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}".encode()

    def polls_with(self, token: str) -> None:
        """Say with which token to poll again."""
        self._again = (
            " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + token + "\r\n\r\n"
        ).encode()

    def feed(self, data: bytes) -> bytes:
        """Take a whole answer and poll again."""
        data = self.rest + data
        head, end, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or -1)
        if not end or len(body) < length:
            self.rest = data
            return b""
        if not head.startswith(b"HTTP/1.1 200 ") or length < 0:
            raise LoadtestError(f"refused: {head[:200]!r}")
        self.open, self.rest = True, b""
        answer = msgspec.json.decode(body)
        for message in answer["messages"]:
            self.messages += 1
            self.on_message(message["data"].encode())
        cursor: str = answer["cursor"]
        return b"GET /poll?wait=60&cursor=" + cursor.encode() + self._again


KINDS: Final[dict[str, tuple[type[Client], str]]] = {
    "ws": (WebSocketClient, "/ws"),
    "sse": (SseClient, "/sse"),
    "poll": (PollClient, "/poll"),
}


class Crowd:
    """Many clients of one server."""

    def __init__(
        self,
        port: int,
        kind: str,
        *,
        tls: ssl.SSLContext | None = None,
        first_address: int = 2,
        receive_bytes: int | None = None,
        may_lose: bool = False,
    ) -> None:
        """`kind` is ws, sse or poll.

        `tls` trusts the server's certificate. Sources are 127.0.0.`first_address` and those that
        follow. `receive_bytes` is each socket's SO_RCVBUF, the kernel's own if None. With
        `may_lose` a connection that ends is counted in `lost`; otherwise it is an error.
        """
        self.clients: list[Client] = []
        self.lost: list[str] = []
        self._make, self._path = KINDS[kind]
        self._port = port
        self._tls = tls
        self._first_address = first_address
        self._receive_bytes = receive_bytes
        self._may_lose = may_lose
        self._epoll = select.epoll()
        self._waker = -1
        self._sockets: dict[int, tuple[socket.socket, Client]] = {}

    def connect(
        self,
        tokens: Sequence[str],
        *,
        on_message: Iterable[OnMessage] = (),
        seconds: float = 120.0,
        window: int = _WINDOW,
    ) -> None:
        """Open a connection for each token, and wait until the server has answered each.

        `window` handshakes at most are under way at once; those of each window are answered
        within `seconds`.
        """
        takers = list(on_message) or [_ignore] * len(tokens)
        for start in range(0, len(tokens), window):
            end = start + window
            opened = [
                self._open(token, taker)
                for token, taker in zip(tokens[start:end], takers[start:end], strict=True)
            ]
            self.until(
                lambda opened=opened: self.lost or all(c.open for c in opened),  # type: ignore[misc]
                seconds=seconds,
            )
            if self.lost:
                raise LoadtestError(f"lost while it connected: {self.lost[0]}")
        for client in self.clients:
            client.heartbeats = 0  # what came with the head is none

    def turn(self, wait_seconds: float) -> int:
        """Wait for inbound bytes and take them; return from how many clients."""
        ready = self._epoll.poll(wait_seconds, 4_096)
        for descriptor, _ in ready:
            if descriptor == self._waker:
                continue
            held, client = self._sockets[descriptor]
            try:
                data = held.recv(_READ_BYTES)
                if not data:
                    raise LoadtestError("the server ended a connection")
                if answer := client.feed(data):
                    held.send(answer)
            except ssl.SSLWantReadError:
                continue  # a record of TLS's own
            except (LoadtestError, OSError) as error:
                if not self._may_lose:
                    raise
                self.lost.append(str(error))
                del self._sockets[descriptor]
                held.close()
        return len(ready)

    @contextmanager
    def woken_by(self, descriptor: int) -> Iterator[None]:
        """End a turn's wait as well when somebody else's descriptor can be read."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._waker = descriptor
        try:
            yield
        finally:
            self._waker = -1
            self._epoll.unregister(descriptor)

    def until(self, done: Callable[[], object], *, seconds: float) -> None:
        """Take inbound bytes until `done`; an error after `seconds`."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise LoadtestError(f"not done within {seconds:g} s")
            self.turn(0.05)

    def rest(self, seconds: float) -> None:
        """Take inbound bytes for `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn(0.05)

    def ports(self) -> list[int]:
        """Return the source port of each connection."""
        return [held.getsockname()[1] for held, _ in self._sockets.values()]

    def close(self) -> None:
        """Close every connection. Harmless when repeated."""
        for held, _ in self._sockets.values():
            held.close()
        self._sockets.clear()
        self._epoll.close()

    def _open(self, token: str, taker: OnMessage) -> Client:
        held = self._socket()
        held.setblocking(False)
        client = self._make(taker)
        if isinstance(client, PollClient):
            client.polls_with(token)
        held.send(self._make.request(self._path, token))
        self._sockets[held.fileno()] = (held, client)
        self._epoll.register(held, select.EPOLLIN)
        self.clients.append(client)
        return client

    def _socket(self) -> socket.socket:
        address = f"127.0.0.{self._first_address + len(self.clients) // _PER_ADDRESS}"
        held = socket.socket()
        if self._receive_bytes is not None:
            # Before it connects: the window that is offered first is of this size.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        held.settimeout(_CONNECT_SECONDS)
        # The port is chosen when it connects, so that those of connections that have just closed
        # are not kept from other servers' clients.
        held.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        held.bind((address, 0))
        held.connect(("127.0.0.1", self._port))
        held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(held, server_hostname="127.0.0.1") if self._tls else held
