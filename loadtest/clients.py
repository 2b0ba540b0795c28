"""A crowd of raw clients in one thread: sockets in an epoll set, and minimal parsers of the bytes.

No client library could keep up: the CPU time that the clients spend on a message is taken from the
two cores of the system under test.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final
from urllib.parse import quote

import msgspec

from loadtest.processes import LoadtestError

#: Handshakes under way at once.
_WINDOW: Final = 200
#: Clients with the same source address. Further clients use the next address, so no benchmark
#: needs more ports than this of any address.
_PER_ADDRESS: Final = 10_000
_READ_BYTES: Final = 262_144
_CONNECT_SECONDS: Final = 30.0
#: Linux's socket option; Python's `socket` names the option from 3.12 on.
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_KEY: Final = b64encode(bytes(16)).decode()
_PONG: Final = 0x8A

OnMessage = Callable[[bytes], object]


def _ignore(payload: bytes) -> None:
    """Take a payload and do nothing with it."""


class Client:
    """One connection whose request has been sent."""

    __slots__ = ("heartbeats", "messages", "on_message", "open", "rest")

    def __init__(self, on_message: OnMessage) -> None:
        self.on_message = on_message
        self.open = False
        self.rest = b""
        self.messages = 0
        self.heartbeats = 0

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the bytes that open the connection."""
        raise NotImplementedError

    def feed(self, data: bytes) -> bytes:
        """Take inbound bytes; return the bytes to answer with.

        Raises:
            LoadtestError: the server refused the request, or closed the WebSocket.
        """
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
        """Parse the bytes behind the response's head; keep an incomplete last part in `rest`."""
        raise NotImplementedError


class WebSocketClient(Client):
    """Counts data frames and answers Ping frames."""

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
        """Parse complete frames of less than 64 KiB, unmasked as servers send them (§5.1)."""
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


class _Frame(msgspec.Struct):
    """A frame of pushgate.v1: a message, or a control frame without `data`."""

    control: str | None = None
    cursor: str | None = None
    data: str | None = None


class V1Client(WebSocketClient):
    """Speaks pushgate.v1, keeps the last cursor, and counts gaps.

    `messages` counts control frames too; `on_message` gets the messages alone. The last cursor is
    enough to miss nothing and to get nothing twice where a user's messages are in one partition.
    """

    __slots__ = ("_on_data", "cursor", "gaps")
    _decode: ClassVar = msgspec.json.Decoder(_Frame).decode

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__(self._take)
        self._on_data = on_message
        self.cursor: str | None = None
        self.gaps = 0

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the opening handshake."""
        head = WebSocketClient.request(path, token).removesuffix(b"\r\n")
        return head + b"Sec-WebSocket-Protocol: pushgate.v1\r\n\r\n"

    @staticmethod
    def path(cursor: str | None) -> str:
        """Return where a client with a cursor comes back, or one without connects."""
        return "/ws" if cursor is None else f"/ws?cursor={quote(cursor)}"

    def _take(self, payload: bytes) -> None:
        frame = self._decode(payload)
        if frame.cursor is not None:
            self.cursor = frame.cursor
        if frame.data is not None:
            self._on_data(frame.data.encode())
        elif frame.control == "gap":
            self.gaps += 1


class SseClient(Client):
    """Counts `data:` lines, and heartbeats: comments, or events of type `pushgate.cursor`.

    Chunk sizes of a chunked stream are ignored lines.
    """

    __slots__ = ("_in_heartbeat",)

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__(on_message)
        self._in_heartbeat = False  # the next `data:` line is a heartbeat's

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the request."""
        return (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()

    def walk(self, data: bytes) -> bytes:
        """Parse complete lines."""
        *lines, self.rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and not self._in_heartbeat:
                self.messages += 1
                self.on_message(line[6:])
            elif line.startswith(b":") or line == b"event: pushgate.cursor":
                self.heartbeats += 1
            self._in_heartbeat = line == b"event: pushgate.cursor"
        return b""


class PollClient(Client):
    """Polls again after every answer. The first poll does not wait: its answer opens a session."""

    __slots__ = ("_again",)
    wait_seconds: ClassVar[int] = 60

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__(on_message)
        self._again = b""

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the first poll."""
        authorization = f"Authorization: Bearer {token}\r\n\r\n"
        return f"GET {path}?wait=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}".encode()

    def polls_with(self, token: str) -> None:
        """Set the token of all polls but the first."""
        self._again = (
            " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + token + "\r\n\r\n"
        ).encode()

    def feed(self, data: bytes) -> bytes:
        """Take a complete answer and return the next poll."""
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
        self.take(answer)
        cursor = quote(answer["cursor"])
        return f"GET /poll?wait={self.wait_seconds}&cursor={cursor}".encode() + self._again

    def take(self, answer: Mapping[str, Any]) -> None:
        """Take the messages of an answer."""
        for message in answer["messages"]:
            self.messages += 1
            self.on_message(message["data"].encode())


KINDS: Final[dict[str, tuple[type[Client], str]]] = {
    "ws": (WebSocketClient, "/ws"),
    "v1": (V1Client, "/ws"),
    "sse": (SseClient, "/sse"),
    "poll": (PollClient, "/poll"),
}


class Crowd:
    """Many clients of one server."""

    def __init__(
        self,
        port: int | Sequence[int],
        kind: str,
        *,
        tls: ssl.SSLContext | None = None,
        first_address: int = 2,
        receive_bytes: int | None = None,
        may_lose: bool = False,
    ) -> None:
        """Connect to `port`, to several ports in turn; `kind` is ws, v1, sse or poll.

        `tls` trusts the server's certificate. Source addresses are 127.0.0.`first_address` and the
        addresses that follow. `receive_bytes` is SO_RCVBUF of every socket, the kernel's default if
        None. With `may_lose` a lost connection is recorded in `lost`; otherwise a lost connection
        is an error.
        """
        self.clients: list[Client] = []
        self.lost: list[str] = []
        self._make, self._path = KINDS[kind]
        self._ports = (port,) if isinstance(port, int) else tuple(port)
        self._tls = tls
        self._first_address = first_address
        self._receive_bytes = receive_bytes
        self._may_lose = may_lose
        self._epoll = select.epoll()
        self._waker = -1
        self._sockets: dict[int, tuple[socket.socket, Client]] = {}

    @property
    def descriptor(self) -> int:
        """Return a descriptor that can be read while any connection can be."""
        return self._epoll.fileno()

    def connect(
        self,
        tokens: Sequence[str],
        *,
        on_message: Iterable[OnMessage] = (),
        seconds: float = 120.0,
        window: int = _WINDOW,
    ) -> None:
        """Open a connection for each token, and wait until the server has answered all requests.

        `on_message` has a callback for each connection, or none at all. At most `window` handshakes
        are under way at once; all handshakes of one window are answered within `seconds`.

        Raises:
            LoadtestError: a request was refused or lost, or was not answered in time.
        """
        callbacks = list(on_message) or [_ignore] * len(tokens)
        for start in range(0, len(tokens), window):
            end = start + window
            opened = [
                self.open(token, callback)
                for token, callback in zip(tokens[start:end], callbacks[start:end], strict=True)
            ]
            self.until(
                lambda opened=opened: self.lost or all(c.open for c in opened),  # type: ignore[misc]
                seconds=seconds,
            )
            if self.lost:
                raise LoadtestError(f"lost while it connected: {self.lost[0]}")
        for client in self.clients:
            client.heartbeats = 0  # what comes right behind the head is no heartbeat

    def open(self, token: str, on_message: OnMessage = _ignore, *, path: str = "") -> Client:
        """Send the request of one more client; `turn` takes the answer.

        `path` is the request's, where it is not the kind's.
        """
        client_socket = self._connected_socket()
        client_socket.setblocking(False)
        client = self._make(on_message)
        if isinstance(client, PollClient):
            client.polls_with(token)
        client_socket.send(self._make.request(path or self._path, token))
        self._sockets[client_socket.fileno()] = (client_socket, client)
        self._epoll.register(client_socket, select.EPOLLIN)
        self.clients.append(client)
        return client

    def turn(self, wait_seconds: float) -> int:
        """Wait up to `wait_seconds` for inbound bytes and take them; return how many were ready.

        Raises:
            LoadtestError: a connection was lost, and `may_lose` was not set.
        """
        ready = self._epoll.poll(wait_seconds, 4_096)
        for descriptor, _ in ready:
            if descriptor == self._waker:
                continue
            client_socket, client = self._sockets[descriptor]
            try:
                data = client_socket.recv(_READ_BYTES)
                if not data:
                    raise LoadtestError(f"the server ended a connection of {type(client).__name__}")
                if answer := client.feed(data):
                    client_socket.send(answer)
            except ssl.SSLWantReadError:
                continue  # a TLS record without application data, or an incomplete one
            except (LoadtestError, OSError) as error:
                if not self._may_lose:
                    raise
                self.lost.append(str(error))
                del self._sockets[descriptor]
                client_socket.close()
        return len(ready)

    @contextmanager
    def woken_by(self, descriptor: int) -> Iterator[None]:
        """End the wait of a turn also when `descriptor`, which is no client's, can be read."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._waker = descriptor
        try:
            yield
        finally:
            self._waker = -1
            self._epoll.unregister(descriptor)

    def until(self, done: Callable[[], object], *, seconds: float) -> None:
        """Take inbound bytes until `done` returns true.

        Raises:
            LoadtestError: `done` was still false after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise LoadtestError(f"not done within {seconds:g} s")
            self.turn(0.05)

    def rest_until(self, due: float) -> None:
        """Take inbound bytes until the time `due` of the monotonic clock, and once at least."""
        self.turn(0)
        while (early := due - time.monotonic()) > 0:
            self.turn(early)

    def rest(self, seconds: float) -> None:
        """Take inbound bytes for `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn(0.05)

    def ports(self) -> list[int]:
        """Return the source port of each connection."""
        return [client_socket.getsockname()[1] for client_socket, _ in self._sockets.values()]

    def close(self) -> None:
        """Close every connection. Harmless when repeated."""
        for client_socket, _ in self._sockets.values():
            client_socket.close()
        self._sockets.clear()
        self._epoll.close()

    def _connected_socket(self) -> socket.socket:
        address = f"127.0.0.{self._first_address + len(self.clients) // _PER_ADDRESS}"
        plain = socket.socket()
        if self._receive_bytes is not None:
            # Before connect(): the first TCP window that the client offers has this size.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        plain.settimeout(_CONNECT_SECONDS)
        # The kernel chooses the port in connect(), when the server's address is known. A port of a
        # connection that has just closed is then free for connections to other servers.
        plain.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        plain.bind((address, 0))
        plain.connect(("127.0.0.1", self._ports[len(self.clients) % len(self._ports)]))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(plain, server_hostname="127.0.0.1") if self._tls else plain
