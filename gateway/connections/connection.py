"""One connection: user, wire, state. Every transition of a connection's life is in this file."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from gateway.connections.closes import (
    CLOSE_GRACE_SECONDS,
    TOKEN_EXPIRED,
    TOO_OLD,
    TOO_SLOW,
    Close,
)
from gateway.connections.delivery import Form
from gateway.connections.identity import Identity
from gateway.errors import GatewayError
from gateway.wires import Wire

#: Messages that wait in a connection while its handshake waits for the registry, one second at
#: most.
MAX_HANDSHAKE_BACKLOG: Final = 64
#: The length of one tick of the node's clock; see sweep.py.
TICK_SECONDS: Final = 0.25
#: A tick that never comes.
NEVER: Final = 1 << 62
#: A client is asked for another token this long before its own expires.
EXPIRY_NOTICE_SECONDS: Final = 30.0
_EXPIRY_NOTICE_TICKS: Final = int(EXPIRY_NOTICE_SECONDS / TICK_SECONDS)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take and how long it may be silent; shared by a whole node."""

    heartbeat_seconds: float
    heartbeat_timeout_seconds: float
    inbound_bytes: int
    inbound_frames: int  # within one heartbeat's interval
    drops_oldest: bool  # for a client that is too slow: drop the oldest messages, or close
    poll_grace_seconds: float
    poll_buffer_bytes: int


class State(enum.Enum):
    """The states of a connection."""

    OPENING = "authenticated, its user's entry is being written; messages wait for the handshake"
    OPEN = "the client has its 101 or 200; messages go out as they come"
    PARTING = "told to reconnect elsewhere; messages go out until it does, or its grace ends"
    CLOSING = "released: no message reaches the client any more; its socket is about to end"
    CLOSED = "the socket is gone; the connection is released and forgotten"


_SPOKEN_TO: Final = (State.OPEN, State.PARTING)
_LIVE: Final = (State.OPENING, State.OPEN, State.PARTING)


class Keeper(Protocol):
    """The node, as a connection sees it."""

    bounds: Bounds

    def release(self, connection: Connection, reason: str) -> None:
        """Stop sending messages to a connection. Called once a connection."""

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`; replaces an earlier call."""

    def age_at(self, connection: Connection, delay_seconds: float | None) -> None:
        """Call the connection's `aged` after `delay_seconds`, or at the node's maximum age."""

    def reconnect_delay(self) -> float:
        """Draw how long, in seconds, a client that is told to reconnect waits before it does."""

    def refresh(self, connection: Connection, token: str) -> float:
        """Let the connection live as long as `token`; return for how many seconds that is.

        Raises:
            Unrefreshed: the token is not valid, or is of another user or device.
        """

    def dropped(self, connection: Connection, messages: int) -> None:
        """Count messages that were dropped unsent for a client that is too slow."""

    def forget(self, connection: Connection) -> None:
        """Wake the connection no more: it is closed. Called once a connection."""


class Unrefreshed(GatewayError):
    """A token does not refresh a connection; the text says why, and never repeats the token."""


class Connection:
    """What the hub holds for each client: a way to send messages to its user.

    One slotted object; no task, no queue, no timer of its own.
    """

    __slots__ = (
        "_farewell",
        "_keeper",
        "address",
        "age_tick",
        "device",
        "expiry_tick",
        "slot",
        "state",
        "user",
        "wake_tick",
        "warned",
    )
    transport: ClassVar[str]
    form: Form  # of a class, or of one connection
    #: The held socket; None where there is none (any more).
    wire: Wire | None = None

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        self.user = identity.user
        self.device = identity.device
        self.state = State.OPENING
        self.address: str | None = None  # where connections are counted by client address
        self.slot = -1  # of the clock's wheel
        self.wake_tick = self.age_tick = self.expiry_tick = NEVER
        self.warned = False  # whether the client was asked for another token
        self._farewell = TOO_OLD  # the close of a client that was told to reconnect and stays
        self._keeper = keeper

    def write(self, data: bytes) -> bool:
        """Take one message in this connection's form; False when the connection can't."""
        raise NotImplementedError

    def close(self, close: Close) -> None:
        """Tell the client to go, in the transport's own way. Harmless when repeated."""
        raise NotImplementedError

    def part(self, close: Close, delay_seconds: float) -> None:
        """Tell the client to reconnect after `delay_seconds`, as `close` would; it closes first."""
        raise NotImplementedError

    def wake(self) -> None:
        """Do what the transport asked `wake_at` for."""
        raise NotImplementedError

    def warn(self, seconds: float) -> None:
        """Tell the client that its token is valid for `seconds` more."""

    def expired(self) -> None:
        """End what the token was for."""
        self.close(TOKEN_EXPIRED)

    def aged(self) -> None:
        """OPEN → PARTING at the maximum age; PARTING → CLOSING where the client did not go."""
        if self.state is State.PARTING:
            self.close(self._farewell)
        else:
            self.part(TOO_OLD, self._keeper.reconnect_delay())

    def next_tick(self) -> int:
        """Return the first tick at which something of this connection is due."""
        warning = 0 if self.warned else _EXPIRY_NOTICE_TICKS
        return min(self.wake_tick, self.age_tick, self.expiry_tick - warning)

    def due(self, tick: int) -> None:
        """Do everything that has become due by `tick`."""
        if tick >= self.wake_tick:
            self.wake_tick = NEVER
            self.wake()
        if self.state not in _LIVE:
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

    def _release(self, reason: str) -> bool:
        """OPENING, OPEN, PARTING → CLOSING: be released, once; False where that was before."""
        if self.state not in _LIVE:
            return False
        self.state = State.CLOSING
        self.age_tick = self.expiry_tick = NEVER
        self._keeper.release(self, reason)
        return True

    def _forget(self, reason: str) -> None:
        """Any → CLOSED: be released where that is still to do, and be forgotten, once."""
        self._release(reason)
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.wake_tick = NEVER
            self._keeper.forget(self)


class StreamConnection(Connection):
    """A connection that is a held socket: WebSocket and SSE."""

    __slots__ = ("_handshake_backlog", "wire")

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        super().__init__(identity, keeper)
        self.wire: Wire | None = None
        self._handshake_backlog: list[bytes] | None = None

    def attach(self, wire: Wire) -> None:
        """Take the socket; nothing is written to it before `open`."""
        self.wire = wire

    def open(self, head: bytes, *, early: bytes = b"") -> None:
        """OPENING → OPEN: send the handshake's answer, then the messages that waited for it.

        `early` are bytes that the client sent behind its request, without waiting for the answer.
        """
        if self.state is not State.OPENING or self.wire is None:
            return
        self.state = State.OPEN
        waiting, self._handshake_backlog = self._handshake_backlog or (), None
        self.wire.write(b"".join((head, *waiting)))
        self.opened()
        if early:
            self.received(early)
        if self.wire is not None:
            self.wire.listen()

    def part(self, close: Close, delay_seconds: float) -> None:
        """OPEN → PARTING where the client can be told; else close: the client waits by itself."""
        if self.state is State.OPENING or not self.can_be_told():
            self.close(close)
        elif self.state is State.OPEN:
            self.state = State.PARTING
            self._farewell = close
            self._keeper.age_at(self, delay_seconds + CLOSE_GRACE_SECONDS)
            self.tell_to_reconnect(close, delay_seconds)

    def close(self, close: Close) -> None:
        """OPENING, OPEN, PARTING → CLOSING: say goodbye; before a handshake there is none."""
        if self.state is State.OPENING:
            self.abort(close.reason)
        elif self._release(close.reason):
            self.say_goodbye(close)

    def ended(self, reason: str, last_words: bytes) -> None:
        """OPEN, PARTING, CLOSING → CLOSING: the peer has ended; send `last_words` and close."""
        if self.wire is not None:
            spoken_to = self.state in _SPOKEN_TO  # a client whose answer is due expects only that
            if self._release(reason) and spoken_to:
                self.wire.write(last_words)
            self.wire.close()

    def abort(self, reason: str) -> None:
        """Any → CLOSING: close without a word and without waiting. Harmless when repeated."""
        self._release(reason)
        if self.wire is not None:
            self.wire.abort()

    def overflowed(self) -> bool:
        """Drop the oldest messages, or end a client that does not read, as the bounds say."""
        if self.wire is None or self.state not in _SPOKEN_TO:
            self.abort(TOO_SLOW.reason)
            return False
        if self._keeper.bounds.drops_oldest:
            self._keeper.dropped(self, self.wire.drop_oldest(self.gap_notice()))
            return True
        self.wire.drop_all()  # the client misses the next message: the rest is of no use to it
        self.close(TOO_SLOW)
        return False

    def lost(self) -> None:
        """Any → CLOSED: the socket is gone."""
        self.wire = None
        self._forget("lost")

    def write(self, data: bytes) -> bool:
        """Hand bytes to the wire; False when the connection takes no more."""
        wire = self.wire
        if wire is None or self.state not in _SPOKEN_TO:
            return self.state is State.OPENING and self._wait_for_handshake(data)
        if wire.write(data):
            return True
        if self.state in _SPOKEN_TO:
            self.abort("lost")
        return False

    def _wait_for_handshake(self, data: bytes) -> bool:
        backlog = self._handshake_backlog
        if backlog is None:
            backlog = self._handshake_backlog = []
        if len(backlog) >= MAX_HANDSHAKE_BACKLOG:
            return False
        backlog.append(data)
        return True

    def received(self, data: bytes) -> None:
        """Take inbound bytes."""
        raise NotImplementedError

    def opened(self) -> None:
        """Start what the transport does on opening."""
        raise NotImplementedError

    def can_be_told(self) -> bool:
        """Whether the client understands being told to reconnect."""
        raise NotImplementedError

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        """Tell the client to reconnect after a delay."""
        raise NotImplementedError

    def gap_notice(self) -> bytes:
        """Return what stands in place of messages that were dropped; maybe nothing."""
        raise NotImplementedError

    def say_goodbye(self, close: Close) -> None:
        """Tell the client why its connection closes, and see to it that the wire ends."""
        raise NotImplementedError
