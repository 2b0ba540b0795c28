"""One connection: user, wire, state. Every transition of a connection's life is in this file."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

import structlog
from msgspec import structs

from gateway import metrics
from gateway.connections.closes import (
    BY_REASON,
    CLOSE_GRACE_SECONDS,
    TOKEN_EXPIRED,
    TOO_OLD,
    TOO_SLOW,
    Close,
)
from gateway.connections.cursor import Partition
from gateway.connections.delivery import Form
from gateway.connections.gate import Screen
from gateway.connections.identity import Identity
from gateway.errors import GatewayError
from gateway.takeover.format import ConnectionRecord, Held, Stream
from gateway.wires import Wire

log = structlog.get_logger("gateway.connection")

#: The most messages that wait in a connection while the handshake waits for the registry, one
#: second at most. `Bounds.send_buffer_bytes` bounds their bytes.
MAX_HANDSHAKE_BACKLOG: Final = 64
#: Stands for the cursor of a connection whose client gets none: a plain WebSocket.
NO_CURSOR: Final = ""
#: The length of one tick of the node's clock; see sweep.py.
TICK_SECONDS: Final = 0.25
#: A tick that never comes.
NEVER: Final = 1 << 62
#: A client is asked for a new token this many seconds before the old token expires.
EXPIRY_NOTICE_SECONDS: Final = 30.0
_EXPIRY_NOTICE_TICKS: Final = int(EXPIRY_NOTICE_SECONDS / TICK_SECONDS)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one connection may take, and how long its client may be silent.

    All connections of a node share one object. `inbound_bytes` bounds one message of the client.
    """

    heartbeat_seconds: float
    heartbeat_timeout_seconds: float
    inbound_bytes: int
    inbound_frames: int  # within one heartbeat's interval
    drops_oldest: bool  # where the send buffer is full: drop the oldest messages, or refuse new
    send_buffer_bytes: int  # what may wait for one client that does not read, or not yet
    poll_grace_seconds: float
    poll_vanished_seconds: float  # the grace after the kernel has found that the client is gone
    poll_buffer_bytes: int
    resume_seconds: float  # how far back a client can resume; 0: not at all


class State(enum.Enum):
    """The states of a connection."""

    OPENING = "authenticated, its user's entry is being written; messages wait for the handshake"
    OPEN = "the client has its 101 or 200; messages go out as they come"
    PARTING = "told to reconnect (a poll: with its next answer); messages go out until it does"
    CLOSING = "released: no message reaches the client any more; its socket is about to end"
    CLOSED = "the socket is gone; the connection is released and forgotten"


#: The states in which messages are sent to the client.
_SENDING: Final = (State.OPEN, State.PARTING)
#: The states before the release: those of the hub's connections.
LIVE: Final = (State.OPENING, State.OPEN, State.PARTING)


class Keeper(Protocol):
    """The node, as a connection sees it."""

    bounds: Bounds

    def release(self, connection: Connection, reason: str) -> None:
        """Stop sending messages to a connection. Called once per connection."""

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`; replaces an earlier call."""

    def age_at(self, connection: Connection, delay_seconds: float | None) -> None:
        """Call the connection's `aged` after `delay_seconds`, or at the node's maximum age."""

    def parting(self, connection: Connection) -> None:
        """Let a new connection of the user take the place of `connection`, a client that parts."""

    def cursor(self, connection: Connection) -> str:
        """Return what a client comes back with; empty where clients don't resume."""

    def reconnect_delay(self) -> float:
        """Draw how long, in seconds, a client that is told to reconnect waits before it does."""

    def refresh(self, connection: Connection, token: str) -> float:
        """Let the connection live as long as `token`; return the token's remaining seconds.

        Raises:
            Unrefreshed: the token is not valid, or is of another user or device.
        """

    def dropped(self, connection: Connection, messages: int) -> None:
        """Count messages that were dropped unsent to make room for newer ones."""

    def watch(self, connection: StreamConnection) -> None:
        """Close the connection as too slow if its wire makes no progress while bytes wait."""

    def unsent(self, messages: int, reason: str) -> None:
        """Count messages that were taken, and not sent before the connection's end."""

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection from the clock and the counts. Called once per connection."""


class Captured(NamedTuple):
    """A connection that the next process gets: its record, and the descriptor of its socket.

    A poll session of which no request waits has no socket.
    """

    record: ConnectionRecord
    descriptor: int | None


class Unrefreshed(GatewayError):
    """A token does not refresh a connection. The text says why, and never contains the token."""


class Connection:
    """A client's way to get the messages of its user: a held socket or a poll session.

    The hub holds one slotted object per connection. A connection has no task, no queue and no timer
    of its own.
    """

    __slots__ = (
        "_keeper",
        "_reason",
        "address",
        "age_tick",
        "cursor",
        "device",
        "expiry_tick",
        "held_since_ms",
        "screen",
        "slot",
        "state",
        "user",
        "wake_tick",
        "warned",
    )
    transport: ClassVar[str]
    #: Whether encoded messages one after the other are a message for `write` too: a stream's.
    joins_writes: ClassVar[bool] = False
    form: Form  # set by the class, or by an instance: a WebSocket's subprotocol decides
    #: The wire of the held socket; None for a poll session, and after the socket is gone.
    wire: Wire | None = None

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        self.user = identity.user
        self.device = identity.device
        self.state = State.OPENING
        self.address: str | None = None  # set where connections are counted by client address
        #: The cursor of the last message that the connection took; None after a message that it had
        #: no room for, and where none came lately. NO_CURSOR where the client gets no cursors.
        self.cursor: str | None = None
        self.screen: Screen | None = None  # of a client that has come back with a cursor
        self.held_since_ms = 0  # epoch ms, set by the node: when the connection was taken in
        self.slot = -1  # the connection's slot in the clock's wheel; -1: in no slot
        self.wake_tick = self.age_tick = self.expiry_tick = NEVER
        self.warned = False  # whether the client was asked for a new token
        # Why the connection ended; in PARTING, why it is closed where the client stays.
        self._reason = TOO_OLD.reason
        self._keeper = keeper

    @property
    def id(self) -> str:
        """The connection's name in listings and in the log: no other of the node has it now.

        Memory is used again by a later connection, which began at another time.
        """
        return f"{self.held_since_ms:x}-{id(self):x}"

    @property
    def takes_messages(self) -> bool:
        """Whether the connection is not released yet."""
        return self.state in LIVE

    def write(self, data: bytes) -> bool:
        """Take one message, encoded in this connection's form; False if it was not taken.

        A connection that still `takes_messages` after a False has no room now.
        """
        raise NotImplementedError

    def has_backlog(self) -> bool:
        """Whether messages wait for the client, so that another message would wait too."""
        raise NotImplementedError

    def takes_replay(self) -> bool:
        """Whether a replayed message can go out now: behind a backlog it would wait unbounded."""
        return not self.has_backlog()

    def resumed(self) -> None:
        """Take note that all missed messages have been written."""

    def forget_position(self, partition: Partition) -> None:
        """Take note that the client's position in a partition is of a topic made anew."""

    def tell_gap(self) -> None:
        """Tell the client that messages may be missing, where the client understands that."""

    def close(self, close: Close) -> None:
        """Tell the client why the connection ends, and end it. Harmless when repeated."""
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        """End the connection at once, without a goodbye. Harmless when repeated."""
        raise NotImplementedError

    @property
    def can_be_captured(self) -> bool:
        """Whether the next process can get the connection as it is now."""
        raise NotImplementedError

    @property
    def is_in_between(self) -> bool:
        """Whether the next process can get the connection in a moment, perhaps."""
        return self.state is State.OPENING

    def capture(self, held: Held, stream: Stream) -> Captured:
        """OPEN, PARTING → CLOSED: give the connection to the next process.

        Called by the node alone, which forgets the connection, where `can_be_captured`. `held` is
        from `record`; `stream` counts for held sockets.
        """
        raise NotImplementedError

    def record(self, tick: int, *, replaced: bool | None = None) -> Held:
        """Return what is passed of every connection; `tick` is the clock's present one.

        `replaced` is as in `Held`.
        """
        return Held(
            self.user,
            self.device,
            self._reason if self.state is State.PARTING else None,
            self.held_since_ms,
            self.cursor,
            _ticks_from(tick, self.wake_tick),
            _ticks_from(tick, self.age_tick),
            _ticks_from(tick, self.expiry_tick),
            self.warned,
            self.address,
            replaced,
            screen=None if self.screen is None else self.screen.record(),
        )

    def adopt(self, held: Held, tick: int) -> None:
        """Become what the connection was in the earlier process, in OPEN or PARTING."""
        self.held_since_ms = held.held_since_ms
        self.cursor = held.cursor or (NO_CURSOR if self.cursor is NO_CURSOR else None)
        self.wake_tick = _tick_in(tick, held.wake_ticks)
        self.age_tick = _tick_in(tick, held.age_ticks)
        self.expiry_tick = _tick_in(tick, held.expiry_ticks)
        self.warned = held.warned
        self.state = State.OPEN
        if held.parting_reason is not None:
            self.state, self._reason = State.PARTING, held.parting_reason

    def failed(self) -> None:
        """Log the present exception, and end this connection.

        For `except` blocks of loops over connections: an unexpected error of one connection must
        neither end the loop nor go on with every message.
        """
        log.exception(
            "a connection failed, and is ended",
            connection=self.id,
            user=self.user,
            transport=self.transport,
        )
        try:
            self.abort("failed")
        except Exception:
            log.exception("a connection that failed can't be ended", connection=self.id)

    def part(self, close: Close, delay_seconds: float) -> None:
        """Tell the client to reconnect after `delay_seconds`; `close` has the reason.

        A client that understands `reconnect` gets messages until it closes, or its grace ends.
        """
        raise NotImplementedError

    def wake(self) -> None:
        """Do the work for which the transport called `wake_at`, for example a heartbeat."""
        raise NotImplementedError

    def warn(self, seconds: float) -> None:
        """Tell the client that its token is valid for `seconds` more."""

    def expired(self) -> None:
        """End what the token was for: the connection, or a long-poll client's parked request."""
        self.close(TOKEN_EXPIRED)

    def aged(self) -> None:
        """OPEN → PARTING at the maximum age; PARTING → CLOSING where the client has stayed."""
        if self.state is State.PARTING:
            self.close(BY_REASON[self._reason])
        else:
            self.part(TOO_OLD, self._keeper.reconnect_delay())

    def next_tick(self) -> int:
        """Return the first tick at which the connection has something due."""
        warning = 0 if self.warned else _EXPIRY_NOTICE_TICKS
        return min(self.wake_tick, self.age_tick, self.expiry_tick - warning)

    def due(self, tick: int) -> None:
        """Do the work that has become due by `tick`: wake-up, then expiry, age or warning."""
        if tick >= self.wake_tick:
            self.wake_tick = NEVER
            self.wake()
        if self.state not in LIVE:
            return
        if tick >= self.expiry_tick:
            self.expiry_tick = NEVER
            self.expired()
        elif tick >= self.age_tick:
            self.age_tick = NEVER
            self.aged()
        elif not self.warned and tick >= self.expiry_tick - _EXPIRY_NOTICE_TICKS:
            self.warned = True
            self.warn((self.expiry_tick - tick) * TICK_SECONDS)

    def _begin_parting(self, close: Close) -> None:
        """OPEN → PARTING: the client is told to reconnect; `close` has the reason."""
        self.state = State.PARTING
        self._reason = close.reason

    def _release(self, reason: str) -> bool:
        """OPENING, OPEN, PARTING → CLOSING: release, once; return False if released before."""
        if self.state not in LIVE:
            return False
        self.state = State.CLOSING
        self._reason = reason
        self.age_tick = self.expiry_tick = NEVER
        self._keeper.release(self, reason)
        return True

    def _forget(self, reason: str) -> None:
        """Any → CLOSED: release the connection if still necessary; forget it, once."""
        self._release(reason)
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.wake_tick = NEVER
            self._keeper.forget(self)


def _ticks_from(tick: int, due: int) -> int | None:
    return None if due == NEVER else due - tick


def _tick_in(tick: int, ticks: int | None) -> int:
    return NEVER if ticks is None else tick + ticks


class StreamConnection(Connection):
    """A connection with a held socket: WebSocket and SSE."""

    __slots__ = ("_handshake_backlog", "wire")
    joins_writes = True

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        super().__init__(identity, keeper)
        self.wire: Wire | None = None
        self._handshake_backlog: list[bytes] | None = None

    def attach(self, wire: Wire) -> None:
        """Take the wire of the socket; nothing is written before `open`."""
        self.wire = wire

    def open(self, head: bytes, *, early: bytes = b"") -> None:
        """OPENING → OPEN: send `head`, the handshake's answer, then the messages that waited.

        `early` are bytes that the client sent behind its request, without waiting for the answer.
        """
        if self.state is not State.OPENING or self.wire is None:
            return
        self.state = State.OPEN
        messages, self._handshake_backlog = self._handshake_backlog or (), None
        self.wire.write(b"".join((head, *messages)))
        self.opened()
        if early:
            self.received(early)
        if self.wire is not None:
            self.wire.listen()

    def part(self, close: Close, delay_seconds: float) -> None:
        """OPEN → PARTING where the client understands `reconnect`; otherwise close.

        After a close the client chooses its own delay.
        """
        if self.state is State.OPENING or not self.understands_reconnect():
            self.close(close)
        elif self.state is State.OPEN:
            self._begin_parting(close)
            self._keeper.parting(self)
            self._keeper.age_at(self, delay_seconds + CLOSE_GRACE_SECONDS)
            self.tell_to_reconnect(close, delay_seconds)

    def close(self, close: Close) -> None:
        """OPENING, OPEN, PARTING → CLOSING: say goodbye; in OPENING, cut the socket off instead.

        Before the handshake's answer the client understands no goodbye.
        """
        if self.state is State.OPENING:
            self.abort(close.reason)
        elif self._release(close.reason):
            self.say_goodbye(close)

    def ended(self, reason: str, last_words: bytes) -> None:
        """OPEN, PARTING, CLOSING → CLOSING: the peer has ended; send `last_words` and close."""
        if self.wire is not None:
            # In OPENING the client expects the handshake's answer, and nothing before the answer.
            was_sending = self.state in _SENDING
            if self._release(reason):
                # After a goodbye of the gateway its own grace runs already.
                self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)
                if was_sending:
                    self.wire.write_control(last_words)
            self.wire.close()

    def abort(self, reason: str) -> None:
        """Any → CLOSING: close at once, without a goodbye. Harmless when repeated."""
        self._release(reason)
        if self.wire is not None:
            self.wire.abort()

    def backlogged(self) -> None:
        """Have the clock watch whether the client reads."""
        self._keeper.watch(self)

    def too_slow(self) -> None:
        """OPEN, PARTING → CLOSING: close a client that does not read."""
        self.close(TOO_SLOW)

    def lost(self, unsent: int = 0) -> None:
        """Any → CLOSED: the socket is gone, with `unsent` messages unsent."""
        self.wire = None
        self._forget("lost")
        handshake_backlog, self._handshake_backlog = self._handshake_backlog or (), None
        self._keeper.unsent(unsent + len(handshake_backlog), self._reason)

    def write(self, data: bytes) -> bool:
        """Hand a message to the wire; False if not taken.

        In OPENING the message waits for the handshake. Where the wire has no room the message is
        refused, or the oldest messages are dropped: `Bounds.drops_oldest` decides.
        """
        wire = self.wire
        if wire is None or self.state not in _SENDING:
            return self.state is State.OPENING and self._wait_for_handshake(data)
        if wire.write(data):
            return True
        if not wire.waits():
            self.abort("lost")
            return False
        if self._keeper.bounds.drops_oldest:
            self._keeper.dropped(self, wire.displace(data, self.gap_notice()))
            return True
        return False

    def has_backlog(self) -> bool:
        """Whether messages wait for the handshake, or the wire for the client to read."""
        if self._handshake_backlog:
            return True
        return self.wire is not None and self.wire.waits()

    @property
    def can_be_captured(self) -> bool:
        """Whether the handshake is answered, no goodbye is said, and the wire can give it up."""
        return self.state in _SENDING and self.wire is not None and self.wire.can_be_captured

    def capture(self, held: Held, stream: Stream) -> Captured:
        """OPEN, PARTING → CLOSED: give the connection to the next process."""
        wire = self.wire
        assert wire is not None  # noqa: S101 - `can_be_captured`
        descriptor, unsent = wire.capture()
        self.wire = None
        self.state = State.CLOSED
        self.wake_tick = self.age_tick = self.expiry_tick = NEVER
        return Captured(
            self.stream_record(held, structs.replace(stream, unsent=unsent)), descriptor
        )

    def write_control(self, data: bytes) -> None:
        """Hand control bytes of the transport to the wire; in OPENING they wait like messages."""
        if self.state is State.OPENING:
            self._wait_for_handshake(data)
        elif self.wire is not None and self.state in _SENDING:
            self.wire.write_control(data)

    def tell_gap(self) -> None:
        """Tell the client that messages may be missing, where the client understands that."""
        if notice := self.gap_notice():
            metrics.GAPS.inc()
            self.write_control(notice)

    def _wait_for_handshake(self, data: bytes) -> bool:
        backlog = self._handshake_backlog
        if backlog is None:
            backlog = self._handshake_backlog = []
        size = sum(map(len, backlog)) + len(data)
        # A first message always fits, however long, as in a wire's backlog.
        if backlog and size > self._keeper.bounds.send_buffer_bytes:
            return False
        if len(backlog) >= MAX_HANDSHAKE_BACKLOG:
            return False
        backlog.append(data)
        return True

    def stream_record(self, held: Held, stream: Stream) -> ConnectionRecord:
        """Return the record of the connection, with what only its transport knows."""
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        """Take bytes from the client."""
        raise NotImplementedError

    def opened(self) -> None:
        """Start the transport's own work, such as heartbeats: the connection is open."""
        raise NotImplementedError

    def understands_reconnect(self) -> bool:
        """Whether the client understands `reconnect`, and so can be told to reconnect."""
        raise NotImplementedError

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        """Send `reconnect`: the client is to connect again after `delay_seconds`."""
        raise NotImplementedError

    def gap_notice(self) -> bytes:
        """Return the bytes that stand in place of dropped messages; may be empty."""
        raise NotImplementedError

    def say_goodbye(self, close: Close) -> None:
        """Tell the client why the connection closes, and make sure that the wire is closed."""
        raise NotImplementedError
