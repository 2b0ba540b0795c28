"""A node, a registry and a socket as a connection sees them, which remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from gateway.connections.closes import Close
from gateway.connections.connection import (
    Bounds,
    Connection,
    Keeper,
    StreamConnection,
    Unrefreshed,
)
from gateway.connections.delivery import Delivery
from gateway.connections.identity import Identity
from gateway.takeover.format import Unsent
from gateway.wires import CapturedSocket
from registry.directory import Lease, Node, Processors, RegistryRefuses, RegistryUnavailable

BOUNDS = Bounds(
    heartbeat_seconds=25.0,
    heartbeat_timeout_seconds=10.0,
    inbound_bytes=1_000,
    inbound_frames=250,
    drops_oldest=False,
    send_buffer_bytes=16_384,
    poll_grace_seconds=30.0,
    poll_vanished_seconds=17.0,
    poll_buffer_bytes=4_096,
    resume_seconds=120.0,
)
NODE = Node("gw-a", "e1", "127.0.0.1:8081")


def identity(user: str = "alice", device: str | None = None) -> Identity:
    return Identity(user, device, 2_000_000_000)


def message(payload: bytes | str = b"hello", message_id: str = "m-1") -> Delivery:
    data = payload.encode() if isinstance(payload, str) else payload
    return Delivery(data, message_id=message_id)


def give(connection: Connection, delivery: Delivery) -> bool:
    """Send one message, as the hub does."""
    return connection.write(delivery.encoded(connection.form))


class FakeKeeper:
    """The Keeper protocol of gateway/connections/connection.py."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.bounds = bounds
        self.released: list[str] = []
        self.forgotten = 0
        self.wake_in: float | None = None
        self.ages: list[float | None] = []
        self.told_to_part: list[Connection] = []
        self.cursors = ""  # what every client comes back with
        self.delay = 3.0  # what a client is told to wait
        self.tokens: dict[str, float] = {}  # those that refresh, and for how long
        self.dropped_messages = 0
        self.watched: list[Connection] = []
        self.unsent_messages: list[tuple[int, str]] = []

    def release(self, connection: Connection, reason: str) -> None:
        self.released.append(reason)

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        self.wake_in = delay_seconds

    def age_at(self, connection: Connection, delay_seconds: float | None) -> None:
        self.ages.append(delay_seconds)

    def parting(self, connection: Connection) -> None:
        self.told_to_part.append(connection)

    def cursor(self, connection: Connection) -> str:
        return self.cursors

    def reconnect_delay(self) -> float:
        return self.delay

    def refresh(self, connection: Connection, token: str) -> float:
        if token not in self.tokens:
            raise Unrefreshed("no good token")
        return self.tokens[token]

    def dropped(self, connection: Connection, messages: int) -> None:
        self.dropped_messages += messages

    def watch(self, connection: StreamConnection) -> None:
        self.watched.append(connection)

    def unsent(self, messages: int, reason: str) -> None:
        if messages:
            self.unsent_messages.append((messages, reason))

    def forget(self, connection: Connection) -> None:
        self.forgotten += 1
        self.wake_in = None

    def wake(self, connection: Connection) -> None:
        """Let the time pass for which the connection asked."""
        assert self.wake_in is not None, "nobody asked to be woken"
        self.wake_in = None
        connection.wake()


class FakeWire:
    """The Wire protocol of gateway/wires: a peer that reads, until it is gone."""

    direct: int = -1

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.aborted = False
        self.gone = False
        self.listening = False
        self.on_write: Callable[[], object] = lambda: None
        self.full = False  # writes of messages find no room
        self.waiting = False  # bytes wait for the peer
        self.taken = 0  # the progress of the peer
        self.droppable = 0  # messages that are dropped where one displaces others
        self.notices: list[bytes] = []
        self.borne: list[float] = []
        self.capturable = True
        self.descriptor = 7  # of the socket, where it is captured
        self.unsent: Unsent | None = None  # what waits then

    def listen(self) -> None:
        self.listening = True

    def write(self, data: bytes) -> bool:
        self.on_write()
        if self.full or self.gone or self.closed or self.aborted:
            return False
        self.sent += data
        return True

    def write_control(self, data: bytes) -> None:
        self.on_write()
        if not (self.gone or self.closed or self.aborted):
            self.sent += data

    def finish(self, rest: bytes) -> None:
        self.sent += rest

    def displace(self, data: bytes, notice: bytes) -> int:
        self.notices.append(notice)
        self.sent += data
        return self.droppable

    def waits(self) -> bool:
        return self.full or self.waiting

    def progress(self) -> int:
        return self.taken

    def all_taken(self) -> bool:
        return not self.waits()

    def bear(self, seconds: float) -> None:
        self.borne.append(seconds)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    @property
    def can_be_captured(self) -> bool:
        return self.capturable and not self.closed

    def capture(self) -> CapturedSocket:
        self.gone = True
        return CapturedSocket(self.descriptor, self.unsent)

    def take(self) -> bytes:
        """Give what was sent since the last call."""
        sent, self.sent = self.sent, b""
        return sent


class FakeResume:
    """Gives a socket back to HTTP (gateway/http/detach.py), and remembers how."""

    client: tuple[str, int] | None = ("192.0.2.1", 4_711)

    def __init__(self) -> None:
        self.early: bytes | None = None  # None: not given back
        self.last = False

    def __call__(self, early: bytes, *, last: bool, unheard: Callable[[], None]) -> None:
        assert self.early is None, "the socket was given back twice"
        self.early, self.last = early, last


class FakeConnection(Connection):
    """A connection for the hub and the clock."""

    transport: ClassVar[str] = "fake"

    @staticmethod
    def form(delivery: Delivery) -> bytes:
        return delivery.payload

    def __init__(
        self, who: Identity | None = None, *, keeper: Keeper | None = None, takes: bool = True
    ) -> None:
        super().__init__(who or identity(), keeper or FakeKeeper())
        self.takes = takes
        self.waiting = False  # whether messages wait for its client
        self.got: list[bytes] = []
        self._woken = 0
        self.told: list[str] = []  # what came due beside its wake-ups
        self.warnings: list[float] = []
        self.on_deliver: Callable[[], object] = lambda: None
        self.on_wake: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> bool:
        self.on_deliver()
        if self.takes:
            self.got.append(data)
        return self.takes

    def has_backlog(self) -> bool:
        return self.waiting

    def close(self, close: Close) -> None:
        self._release(close.reason)

    def abort(self, reason: str) -> None:
        self._forget(reason)

    def gone(self) -> None:
        """Let its socket end."""
        self._forget("lost")

    def wake(self) -> None:
        self._woken += 1
        self.on_wake()

    def warn(self, seconds: float) -> None:
        self.told.append("warned")
        self.warnings.append(seconds)

    def expired(self) -> None:
        self.told.append("expired")
        super().expired()

    def aged(self) -> None:
        self.told.append("aged")

    def woken(self) -> int:
        """Say how often; a method, so that mypy expects another answer each time."""
        return self._woken


class FakeMemory:
    """The Memory protocol of gateway/connections/memory.py, in bytes; all of them are resident.

    `free` bytes can be given back, `stuck` bytes are free and can't.
    """

    def __init__(self) -> None:
        self.held = 0
        self.free = 0
        self.stuck = 0
        self.looks = 0
        self.times_given_back = 0

    def resident(self) -> int:
        self.looks += 1
        return self.held + self.free + self.stuck

    def give_back(self) -> None:
        self.times_given_back += 1
        self.free = 0

    def reusable(self) -> int:
        return self.stuck


class FakeRegistry:
    """The Registry protocol over a set; it can fail, lose everything, or take its time."""

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.leased_by: Node | None = None
        self.taken_by: Node | None = None
        self.available = True
        self.refusal: RegistryRefuses | None = None  # what every call is answered
        self.writes: list[tuple[list[str], list[str]]] = []
        self.claims = 0
        self.heartbeats = 0
        self.now_ms = 0  # by its clock; each reading is a millisecond later
        self.live_processors: frozenset[str] = frozenset()
        self.writing = 0
        self.open = asyncio.Event()  # a write waits for it
        self.open.set()
        self.permits: asyncio.Semaphore | None = None  # a write takes one, where there are any

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        if not self.available:
            raise RegistryUnavailable("as the test wants it")

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        self._check()
        self.heartbeats += 1
        self.claims += claim
        if self.taken_by is not None and not claim:
            return Lease.TAKEN
        held, self.leased_by = self.leased_by == node, node
        return Lease.HELD if held else Lease.LAPSED

    async def processors(self) -> Processors:
        self._check()
        self.now_ms += 1
        return Processors(self.now_ms, self.live_processors)

    async def keep_processor(self, name: str) -> Processors:
        self.live_processors |= {name}
        return await self.processors()

    async def retire_processor(self, name: str) -> None:
        self._check()
        self.live_processors -= {name}

    async def retire(self, node: Node) -> None:
        self._check()
        if self.leased_by == node:
            self.leased_by = None

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        assert node == NODE
        self.writing += 1
        assert self.writing == 1, "one write at a time"
        try:
            await self.open.wait()
            if self.permits is not None:
                await self.permits.acquire()
            self._check()
            self.writes.append((list(here), list(gone)))
            self.users |= set(here)
            self.users -= set(gone)
        finally:
            self.writing -= 1

    async def refresh(self) -> None: ...

    async def nodes(self) -> list[Node]:
        return []

    async def probe(self) -> None:
        self._check()

    def present(self, node: Node) -> bool:
        return True

    def vouch(self, node: Node) -> None: ...

    def lost(self, node: Node) -> bool:
        return False

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        return [(NODE,) if user in self.users else () for user in users]

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
