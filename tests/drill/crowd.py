"""Clients of all kinds that come back by themselves: cheap ones, 1,500 in the drill's own process.

They share the parsers of the benchmarks' raw clients. A client that loses its connection waits as
the browser client does, 0.5–5 s at first, and connects anew; its log goes on. A client that hears
nothing for three heartbeats (a poll: for its wait and as long) gives its connection up, as a page
does on a network that is silent.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Final, cast

import msgspec

from loadtest.clients import Client as Parser
from loadtest.clients import PollClient, SseClient, WebSocketClient
from loadtest.processes import LoadtestError
from pushgate.embedded import LOOPBACK
from tests.drill.accounts import Client, User
from tests.support.clients import eventually, token

#: Bytes of a payload: the number among the user's messages, the user, and filler.
PAYLOAD_BYTES: Final = 200
#: Heartbeats that a client of a stream waits for before it takes its gateway for gone.
_MISSED_HEARTBEATS: Final = 3
_HANDSHAKE_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = (0.5, 5.0)
#: Connections that are opened at once: as many as one turn of a gateway's backlog takes.
_AT_ONCE: Final = 100
_WATCH_SECONDS: Final = 0.5
_TOKEN_SECONDS: Final = 7_200

OnMessage = Callable[[bytes], None]


def payload(user: str, number: int) -> bytes:
    """Return the payload of a user's message."""
    return f"{number}:{user}:".encode().ljust(PAYLOAD_BYTES, b"x")


class _V1Frame(msgspec.Struct):
    """A frame of `pushgate.v1`: a message's has `data`, a control frame has `control`."""

    data: str = ""
    control: str | None = None


class _V1Client(WebSocketClient):
    """A WebSocket with the subprotocol `pushgate.v1`."""

    __slots__ = ()

    def __init__(self, on_message: OnMessage) -> None:
        decode = msgspec.json.Decoder(_V1Frame).decode

        def take(frame: bytes) -> None:
            decoded = decode(frame)
            if decoded.control is None:
                on_message(decoded.data.encode())

        super().__init__(take)

    @staticmethod
    def request(path: str, token: str) -> bytes:
        """Return the opening handshake."""
        plain = WebSocketClient.request(path, token)
        return plain.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: pushgate.v1\r\n\r\n")


class _PollClient(PollClient):
    """A poll session whose polls wait for less than the balancer's and the drill's patience."""

    __slots__ = ()
    wait_seconds: ClassVar[int] = 10


_KINDS: Final[dict[str, tuple[type[Parser], str]]] = {
    "ws-plain": (WebSocketClient, "/ws"),
    "ws-v1": (_V1Client, "/ws"),
    "sse": (SseClient, "/sse"),
    "poll": (_PollClient, "/poll"),
}
#: Of ten clients: 60 % WebSocket of both subprotocols, 30 % SSE, 10 % long-poll.
MIX: Final = (*("ws-plain", "sse", "ws-v1") * 3, "poll")


class _Connection(asyncio.Protocol):
    """One connection of a member of the crowd, from its request to its end."""

    def __init__(self, member: Member) -> None:
        self._member = member
        make, self._path = _KINDS[member.kind]
        self._parser = make(self._take)
        if isinstance(self._parser, PollClient):
            self._parser.polls_with(member.token)
        self._transport: asyncio.Transport | None = None
        self._has_session = False
        self.heard = time.monotonic()
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._parser.request(self._path, self._member.token))

    def data_received(self, data: bytes) -> None:
        """Parse, and answer what has to be answered."""
        self.heard = time.monotonic()
        try:
            answer = self._parser.feed(data)
        except LoadtestError:  # refused, or a Close frame
            self.abort()
            return
        if self._parser.open:
            self._open()
        if answer and self._transport is not None:
            self._transport.write(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """End the session, if there was one."""
        if self._has_session:
            self._member.account.end(time.monotonic())
        for future in (self.opened, self.ended):
            if not future.done():
                future.set_result(None)

    def abort(self) -> None:
        """Close without a word. Harmless when repeated."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def has_session(self) -> bool:
        """Whether the gateway has answered."""
        return self._has_session

    def _open(self) -> None:
        if not self._has_session:
            self._has_session = True
            self._member.account.open(time.monotonic())
            self.opened.set_result(None)

    def _take(self, data: bytes) -> None:
        """Note one message; data of control events has no number before a colon."""
        number, colon, rest = data.partition(b":")
        if not colon:
            return
        self._open()  # a message behind the answer's head, in the same segment
        user = rest.partition(b":")[0].decode()
        if user == self._member.user and data == payload(user, int(number)):
            self._member.account.arrive(int(number), time.monotonic())
        else:
            self._member.strange += 1


@dataclass(slots=True, eq=False)
class Member:
    """One client: who it is, its log, and the connection that it has now."""

    user: str
    kind: str
    account: Client
    token: str
    strange: int = 0  # messages that were published otherwise, or for another user
    connection: _Connection | None = None

    async def run(self, port: int, at_once: asyncio.Semaphore) -> None:
        """Connect, and connect again after every end, until cancelled."""
        while True:
            async with at_once:
                connection = self.connection = await self._connect(port)
            if connection.has_session:
                await connection.ended
            await asyncio.sleep(random.uniform(*_FIRST_DELAY_SECONDS))

    def is_silent(self, now: float, *, patience_seconds: float) -> bool:
        """Whether nothing has come for longer than the gateway should be silent."""
        if self.connection is None or not self.connection.has_session:
            return False
        return now - self.connection.heard > patience_seconds

    async def _connect(self, port: int) -> _Connection:
        """Return a connection that has a session, or had none in time and is closed."""
        connection = _Connection(self)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await loop.create_connection(lambda: connection, LOOPBACK, port)
                await asyncio.shield(connection.opened)
        except (OSError, TimeoutError):
            connection.abort()
        return connection


class Crowd:
    """All clients, and the users that they are of."""

    def __init__(self, prefix: str, clients: int, *, heartbeat_seconds: float) -> None:
        """Every tenth user has two clients; `clients` are all of them.

        `heartbeat_seconds` is the gateways' setting of that name.
        """
        self._patience_seconds = _MISSED_HEARTBEATS * heartbeat_seconds
        self._poll_patience_seconds = self._patience_seconds + _PollClient.wait_seconds
        self.users: list[User] = []
        self.members: list[Member] = []
        while len(self.members) < clients:
            name = f"{prefix}-{len(self.users)}"
            credential = token(name, ttl_seconds=_TOKEN_SECONDS)
            user = User(name, [])
            for _ in range(2 if len(self.users) % 10 == 0 else 1):
                account = Client()
                kind = MIX[len(self.members) % len(MIX)]
                self.members.append(Member(name, kind, account, credential))
                user.clients.append(account)
            self.users.append(user)

    @asynccontextmanager
    async def connected(self, port: int, *, timeout_seconds: float) -> AsyncIterator[None]:
        """Connect all to `port`, and keep them connected."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(member.run(port, at_once)) for member in self.members]
            running.append(tasks.create_task(self._watch()))
            try:
                await eventually(
                    lambda: all(member.account.is_connected for member in self.members),
                    "every client is connected",
                    timeout_seconds=timeout_seconds,
                )
                yield
            finally:
                for task in running:
                    task.cancel()
                self._close()

    def move(self, users: Sequence[str]) -> None:
        """Let these users' clients give up their connections, and connect anew."""
        for member in self.members:
            if member.user in users and member.connection is not None:
                member.connection.abort()

    def strange(self) -> int:
        """Return how many messages arrived that nobody published, or at another user's client."""
        return sum(member.strange for member in self.members)

    async def _watch(self) -> None:
        """End connections that have been silent for too long."""
        while await asyncio.sleep(_WATCH_SECONDS, True):
            now = time.monotonic()
            for member in self.members:
                stream, poll = self._patience_seconds, self._poll_patience_seconds
                patience = poll if member.kind == "poll" else stream
                if member.is_silent(now, patience_seconds=patience) and member.connection:
                    member.connection.abort()

    def _close(self) -> None:
        for member in self.members:
            if member.connection is not None:
                member.connection.abort()


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; NaN where there is nothing."""
    ordered = sorted(seconds)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan
