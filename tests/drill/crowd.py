"""Clients of all kinds that come back by themselves: cheap ones, 1,500 in the drill's own process.

A client that loses its connection waits as the browser client does, 0.5–5 s at first, and connects
anew, with the cursor that it has if its kind resumes (kinds.py); its log goes on. A client of
`pushgate.v1` that is told to reconnect opens its next connection before it closes the first. A
client that hears nothing for three heartbeats (a poll: for its wait and as long) gives its
connection up, as a page does on a network that is silent.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

from loadtest.processes import LoadtestError
from pushgate.embedded import LOOPBACK
from tests.drill.accounts import Client, Ending, Session, User
from tests.drill.kinds import GREETINGS, KINDS, Bookmark, LastCursor, PollSpeaker
from tests.support.clients import eventually, token

#: Bytes of a payload: the number among the user's messages, the user, and filler.
PAYLOAD_BYTES: Final = 200
#: Heartbeats that a client of a stream waits for before it takes its gateway for gone.
_MISSED_HEARTBEATS: Final = 3
_HANDSHAKE_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = (0.5, 5.0)
#: How long a client keeps its first connection when its second is open, as pushgate.js does.
_OVERLAP_SECONDS: Final = 1.0
#: Connections that are opened at once: as many as one turn of a gateway's backlog takes.
_AT_ONCE: Final = 100
_WATCH_SECONDS: Final = 0.5
_TOKEN_SECONDS: Final = 7_200


def payload(user: str, number: int) -> bytes:
    """Return the payload of a user's message."""
    return f"{number}:{user}:".encode().ljust(PAYLOAD_BYTES, b"x")


#: Of ten clients: 60 % WebSocket of both subprotocols, 30 % SSE, 10 % long-poll.
MIX: Final = (*("ws-plain", "sse", "ws-v1") * 3, "poll")


class _Connection(asyncio.Protocol):
    """One connection of a member of the crowd, from its request to its end.

    A client that roams has one here for all its polls, until one fails.
    """

    def __init__(self, member: Member, port: int) -> None:
        self._member = member
        self._port = port
        self._roams = KINDS[member.kind].roams
        self._roaming: asyncio.Task[None] | None = None  # to the next poll's node
        self._speaker = KINDS[member.kind].speaker(self, member.bookmark)
        self._after = -1  # the client's newest message at the request
        self._transport: asyncio.Transport | None = None
        self.session: Session | None = None  # from the gateway's answer on
        self.answered = 0  # polls of a client that roams
        self.heard = time.monotonic()
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        #: Done when the client is told to reconnect; in how many seconds.
        self.parted: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._after = self._member.account.newest
        self._transport.write(self._speaker.opening(self._member.token))

    def data_received(self, data: bytes) -> None:
        """Parse, and answer what has to be answered."""
        self.heard = time.monotonic()
        try:
            answer = self._speaker.feed(data)
        except LoadtestError as error:  # refused, or a Close frame
            self.abort(str(error))
            return
        if self._speaker.open and not self._speaker.greets:
            self._open()
        if answer and self._roams:
            self.answered += 1
            self._roaming = asyncio.create_task(self._roam(answer))
        elif answer and self._transport is not None:
            self._transport.write(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """End the session, if there was one."""
        if self._roaming is None:
            self.end(f"cut off ({error})")

    def end(self, why: str = "") -> None:
        """End the session, or the attempt, which failed for this reason. Harmless when repeated."""
        if self.ended.done():
            return
        if self.session is None:
            self._member.account.failed(why, time.monotonic())
        else:
            self._member.account.end(self.session, time.monotonic())
            if self._roams and self.session.ending is Ending.NONE:
                self.session.ending = Ending.LEFT  # its node may not have known of the poll
        for future in (self.opened, self.ended):
            if not future.done():
                future.set_result(None)

    def abort(self, why: str = "") -> None:
        """Close without a word. Harmless when repeated. `why` is the reason of a failed attempt."""
        if self.session is None or (self._roaming is not None and not self._roaming.done()):
            if self._roaming is not None:
                self._roaming.cancel()
            self.end(why)
        if self._transport is not None:
            self._transport.abort()

    def polls(self, transport: asyncio.Transport, poll: bytes) -> None:
        """Send the next poll of a client that roams."""
        self._transport = transport
        transport.write(poll)

    async def _roam(self, poll: bytes) -> None:
        """Send the next poll on a connection of its own."""
        if self._transport is not None:
            self._transport.abort()
        self._transport = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await loop.create_connection(lambda: _Poll(self, poll), LOOPBACK, self._port)
        except (OSError, TimeoutError):
            self.end()

    def hear(self, data: bytes) -> bool:
        """Note a message; return whether the client is without it."""
        number, _, rest = data.partition(b":")
        session = self._open()  # a message behind the answer's head, in the same segment
        user = rest.partition(b":")[0].decode()
        if user != self._member.user or data != payload(user, int(number)):
            self._member.strange += 1
            return True
        return self._member.account.arrive(int(number), time.monotonic(), session)

    def heed(self, control: str, after_ms: int | None) -> None:
        """Take a control: the first opens the session, a gap is noted, `reconnect` is obeyed."""
        if control in GREETINGS:
            self._open()
        elif control == "gap":
            self._member.account.gaps.append(time.monotonic())
        elif control == "reconnect" and after_ms is not None and not self.parted.done():
            self.parted.set_result(after_ms / 1_000)

    def _open(self) -> Session:
        if self.session is None:
            account = self._member.account
            self.session = account.open(time.monotonic(), after=self._after)
            if not self.opened.done():
                self.opened.set_result(None)
        return self.session


class _Poll(asyncio.Protocol):
    """The connection of one poll of a client that roams."""

    def __init__(self, connection: _Connection, poll: bytes) -> None:
        self._connection = connection
        self._poll = poll
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the poll."""
        self._connection.polls(cast("asyncio.Transport", transport), self._poll)

    def data_received(self, data: bytes) -> None:
        """Take the answer, of one segment or several; the next poll is on another connection."""
        polls_before = self._connection.answered
        self._connection.data_received(data)
        self._is_answered = self._connection.answered > polls_before

    def connection_lost(self, error: Exception | None) -> None:
        """End the session, unless the answer is there."""
        if not self._is_answered:
            self._connection.end()


@dataclass(slots=True, eq=False)
class Member:
    """One client: who it is, its log, and the connection that it has now."""

    user: str
    kind: str
    account: Client
    token: str
    bookmark: Bookmark
    strange: int = 0  # messages that were published otherwise, or for another user
    connection: _Connection | None = None

    async def run(self, port: int, at_once: asyncio.Semaphore) -> None:
        """Connect, and connect again after every end, until cancelled."""
        while True:
            current: _Connection | None = await self._connect(port, at_once)
            while current is not None and current.session is not None:
                self.connection = current
                current = await self._until_over(current, port, at_once)
            await asyncio.sleep(random.uniform(*_FIRST_DELAY_SECONDS))

    def is_silent(self, now: float, *, patience_seconds: float) -> bool:
        """Whether nothing has come for longer than the gateway should be silent."""
        if self.connection is None or self.connection.session is None:
            return False
        return now - self.connection.heard > patience_seconds

    async def _until_over(
        self, connection: _Connection, port: int, at_once: asyncio.Semaphore
    ) -> _Connection | None:
        """Return when a connection is over: with its successor if the client was told to move."""
        try:
            await asyncio.wait(
                (connection.ended, connection.parted), return_when=asyncio.FIRST_COMPLETED
            )
            if not connection.parted.done():
                return None
            await asyncio.sleep(connection.parted.result())
            while not connection.ended.done():
                successor = await self._connect(port, at_once)
                if successor.session is not None:
                    self.connection = successor  # what the client gives up from now on
                    await asyncio.sleep(_OVERLAP_SECONDS)
                    return successor
                await asyncio.sleep(random.uniform(*_FIRST_DELAY_SECONDS))
            return None
        finally:
            connection.abort()

    async def _connect(self, port: int, at_once: asyncio.Semaphore) -> _Connection:
        """Return a connection that has a session, or had none in time and is closed."""
        connection = _Connection(self, port)
        loop = asyncio.get_running_loop()
        async with at_once:
            try:
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await loop.create_connection(lambda: connection, LOOPBACK, port)
                    await asyncio.shield(connection.opened)
            except (OSError, TimeoutError) as error:
                connection.abort(f"{type(error).__name__} {error}".strip())
        return connection


class Crowd:
    """All clients, and the users that they are of."""

    def __init__(
        self,
        prefix: str,
        clients: int,
        *,
        heartbeat_seconds: float,
        latecomers: int = 0,
        mix: Sequence[str] = MIX,
    ) -> None:
        """Every tenth user has two clients; `clients` are all of them, of the kinds in `mix`.

        `heartbeat_seconds` is the gateways' setting of that name. `latecomers` are as many users
        more, of one client each, who connect when they are let in.
        """
        self._mix = mix
        self._patience_seconds = _MISSED_HEARTBEATS * heartbeat_seconds
        self._poll_patience_seconds = self._patience_seconds + PollSpeaker.wait_seconds
        self.users: list[User] = []
        self.members: list[Member] = []
        self._start: Callable[[Member], object] | None = None  # while connected
        while len(self.members) < clients:
            self._add_user(f"{prefix}-{len(self.users)}", 2 if len(self.users) % 10 == 0 else 1)
        self._punctual = len(self.members)
        self.latecomers = [self._add_user(f"{prefix}-late-{n}", 1) for n in range(latecomers)]

    @asynccontextmanager
    async def connected(self, port: int, *, timeout_seconds: float) -> AsyncIterator[None]:
        """Connect all to `port`, and keep them connected."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        punctual = self.members[: self._punctual]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._watch())]
            self._start = lambda member: running.append(
                tasks.create_task(member.run(port, at_once))
            )
            for member in punctual:
                self._start(member)
            try:
                await eventually(
                    lambda: all(member.account.is_connected for member in punctual),
                    "every client is connected",
                    timeout_seconds=timeout_seconds,
                )
                yield
            finally:
                for task in running:
                    task.cancel()
                self._close()

    def let_in(self) -> None:
        """Let the latecomers connect."""
        assert self._start is not None, "the others are connected"
        for member in self.members[self._punctual :]:
            self._start(member)

    def move(self, users: Sequence[User], *, node_sees: bool = True) -> None:
        """Let these users' clients give up their connections, and connect anew.

        `node_sees` is whether their nodes see the ends, so that the users are offline meanwhile.
        """
        names = {user.name for user in users}
        for user in users:
            user.mark(Ending.LEFT, **({"gone": time.monotonic()} if node_sees else {}))
        for member in self.members:
            if member.user in names and member.connection is not None:
                member.connection.abort()

    def cursor(self, user: User) -> str | None:
        """Return the cursor of a user's first client."""
        return next(each.bookmark.cursor for each in self.members if each.user == user.name)

    def forge(self, user: User, cursor: str | None) -> None:
        """Let a user's event streams come back with this cursor, or None, and not with their own.

        For controls of the drill: what then is missing, or comes again, has to be found.
        """
        for member in self.members:
            if member.user == user.name:
                member.bookmark = LastCursor(cursor)

    def strange(self) -> int:
        """Return how many messages arrived that nobody published, or at another user's client."""
        return sum(member.strange for member in self.members)

    async def _watch(self) -> None:
        """End connections that have been silent for too long."""
        while await asyncio.sleep(_WATCH_SECONDS, True):
            now = time.monotonic()
            for member in self.members:
                stream, poll = self._patience_seconds, self._poll_patience_seconds
                patience = poll if member.kind.startswith("poll") else stream
                if member.is_silent(now, patience_seconds=patience) and member.connection:
                    member.connection.abort()

    def _add_user(self, name: str, clients: int) -> User:
        credential = token(name, ttl_seconds=_TOKEN_SECONDS)
        user = User(name, [])
        for _ in range(clients):
            kind = self._mix[len(self.members) % len(self._mix)]
            account = Client(resumes=KINDS[kind].resumes, roams=KINDS[kind].roams)
            self.members.append(Member(name, kind, account, credential, KINDS[kind].bookmark()))
            user.clients.append(account)
        self.users.append(user)
        return user

    def _close(self) -> None:
        for member in self.members:
            if member.connection is not None:
                member.connection.abort()


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; NaN where there is nothing."""
    ordered = sorted(seconds)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan
