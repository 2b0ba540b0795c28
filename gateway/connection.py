"""One connection: user, wire, state. Every transition of its life is in this file."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from gateway.closes import TOKEN_EXPIRED, TOO_OLD, TOO_SLOW, Close
from gateway.delivery import Form
from gateway.wires import Wire

#: How long a client may take to read a goodbye, and to answer a Close frame (Zuul's close grace).
CLOSE_GRACE_SECONDS: Final = 4.0
#: Messages that wait while a handshake waits for the registry, one second at most.
MAX_BACKLOG: Final = 64
#: The node's clock counts these; see gateway/sweep.py.
TICK_SECONDS: Final = 0.25
#: A tick that never comes.
NEVER: Final = 1 << 62
#: A client hears this long before its token expires that it should send another one.
EXPIRY_NOTICE_SECONDS: Final = 30.0
_EXPIRY_NOTICE_TICKS: Final = int(EXPIRY_NOTICE_SECONDS / TICK_SECONDS)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a credential speaks for, until `expires_at` (Unix time, seconds)."""

    user: str
    device: str | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take and how long it may be silent; shared by all of a node."""

    heartbeat_seconds: float
    heartbeat_timeout_seconds: float
    inbound_bytes: int
    inbound_frames: int  # within one heartbeat's interval
    drops_oldest: bool  # when a client is too slow: drop what is oldest, or close
    poll_grace_seconds: float
    poll_buffer_bytes: int


class State(enum.Enum):
    """The states of a connection."""

    OPENING = "authenticated and on its way into the registry; messages wait for the handshake"
    OPEN = "the client has its 101 or 200; messages go out as they come"
    PARTING = "told to reconnect elsewhere; messages go out until it does, or its grace ends"
    CLOSING = "released: no message reaches it any more; the end of its socket is awaited"
    CLOSED = "gone; released and forgotten"


_SPOKEN_TO: Final = (State.OPEN, State.PARTING)
_LIVE: Final = (State.OPENING, State.OPEN, State.PARTING)


class Keeper(Protocol):
    """The node, as a connection sees it."""

    bounds: Bounds

    def release(self, connection: Connection, reason: str) -> None:
        """Let go of a connection that takes no more messages. Called once a connection."""

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`; replaces an earlier call."""

    def age_at(self, connection: Connection, delay_seconds: float | None) -> None:
        """Call the connection's `aged` after `delay_seconds`, or at the node's maximum age."""

    def reconnect_delay(self) -> float:
        """Draw how long, in seconds, a client that is told to reconnect waits before it does."""

    def refresh(self, connection: Connection, token: str) -> float:
        """Let the connection live as long as `token`; return for how many seconds that is.

        Raises:
            Unrefreshed: the token is not good, or not of this user and device.
        """

    def dropped(self, connection: Connection, messages: int) -> None:
        """Count messages that were dropped unsent for a client that is too slow."""

    def forget(self, connection: Connection) -> None:
        """Wake the connection no more: it is closed. Called once a connection."""


class Unrefreshed(Exception):
    """A token that does not refresh a connection. Says why, never with the token."""


class Connection:
    """What the hub holds: somebody's way to get messages.

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
    form: Form  # a class's, or one connection's
    #: A descriptor that takes the next message at once; its wire says so. Else -1.
    direct: int = -1

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        self.user = identity.user
        self.device = identity.device
        self.state = State.OPENING
        self.address: str | None = None  # where connections are counted by address
        self.slot = -1  # the clock's
        self.wake_tick = self.age_tick = self.expiry_tick = NEVER
        self.warned = False
        self._farewell = TOO_OLD  # what it is closed with if it is told to go, and stays
        self._keeper = keeper

    def write(self, data: bytes) -> bool:
        """Take one message in this connection's form; False when it can't."""
        raise NotImplementedError

    def begun(self, rest: bytes) -> None:
        """Take the rest of a message whose beginning was written to `direct`."""
        raise NotImplementedError

    def close(self, close: Close) -> None:
        """Tell the client to go, in the transport's own way. Harmless when repeated."""
        raise NotImplementedError

    def part(self, close: Close, delay_seconds: float) -> None:
        """Tell the client to reconnect after `delay_seconds`, as `close` would; it closes first."""
        raise NotImplementedError

    def wake(self) -> None:
        """Do what `wake_at` was asked for."""
        raise NotImplementedError

    def warn(self, seconds: float) -> None:
        """Tell the client that its token is good for `seconds` more."""

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
        """Return when something is due."""
        warning = 0 if self.warned else _EXPIRY_NOTICE_TICKS
        return min(self.wake_tick, self.age_tick, self.expiry_tick - warning)

    def due(self, tick: int) -> None:
        """Do what has become due by `tick`."""
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

    def _leave(self, reason: str) -> bool:
        """OPENING, OPEN, PARTING → CLOSING: be released, once; False where that was before."""
        if self.state not in _LIVE:
            return False
        self.state = State.CLOSING
        self.age_tick = self.expiry_tick = NEVER
        self._keeper.release(self, reason)
        return True

    def _closed(self, reason: str) -> None:
        """Any → CLOSED: be forgotten as well, once."""
        self._leave(reason)
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.wake_tick = NEVER
            self._keeper.forget(self)


class StreamConnection(Connection):
    """A connection that is a held socket: WebSocket and SSE."""

    __slots__ = ("_backlog", "_wire", "direct")

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        super().__init__(identity, keeper)
        self.direct = -1
        self._wire: Wire | None = None
        self._backlog: list[bytes] | None = None

    def attach(self, wire: Wire) -> None:
        """Take the socket; nothing is written to it before `open`."""
        self._wire = wire

    def open(self, head: bytes, *, early: bytes = b"") -> None:
        """OPENING → OPEN: send the handshake's answer, then what came in the meantime.

        `early` is what the client sent behind its request, without waiting for the answer.
        """
        if self.state is not State.OPENING or self._wire is None:
            return
        self.state = State.OPEN
        waiting, self._backlog = self._backlog or (), None
        self._wire.write(b"".join((head, *waiting)))
        self.opened()
        if early:
            self.received(early)
        if self._wire is not None:
            self._wire.listen()

    def part(self, close: Close, delay_seconds: float) -> None:
        """OPEN → PARTING where the client can be told; else it is closed, and waits by itself."""
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
        elif self._leave(close.reason):
            self.say_goodbye(close)

    def ended(self, reason: str, last_words: bytes) -> None:
        """OPEN, PARTING, CLOSING → CLOSING: the peer is done; send what is due to it and close."""
        if self._wire is not None:
            spoken = self.state in _SPOKEN_TO  # before its answer, a client expects nothing else
            if self._leave(reason) and spoken:
                self._wire.write(last_words)
            self._wire.close()

    def abort(self, reason: str) -> None:
        """Any → CLOSING: close without a word and without waiting. Harmless when repeated."""
        self._leave(reason)
        if self._wire is not None:
            self._wire.abort()

    def overflowed(self) -> bool:
        """Drop what waits longest, or end a client that does not read, as the bounds say."""
        if self._wire is None or self.state not in _SPOKEN_TO:
            self.abort(TOO_SLOW.reason)
            return False
        if self._keeper.bounds.drops_oldest:
            self._keeper.dropped(self, self._wire.drop_oldest(self.gap_notice()))
            return True
        self._wire.drop_all()  # it has missed what comes next: no use in sending the rest
        self.close(TOO_SLOW)
        return False

    def lost(self) -> None:
        """Any → CLOSED: the socket is gone."""
        self._wire = None
        self._closed("lost")

    def write(self, data: bytes) -> bool:
        """Hand bytes to the wire; False when the connection takes no more."""
        wire = self._wire
        if wire is None or self.state not in _SPOKEN_TO:
            return self.state is State.OPENING and self._hold_back(data)
        if wire.write(data):
            return True
        if self.state in _SPOKEN_TO:
            self.abort("lost")
        return False

    def begun(self, rest: bytes) -> None:
        """Let the wire send the rest of a message."""
        if self._wire is not None:
            self._wire.begun(rest)

    def _hold_back(self, data: bytes) -> bool:
        backlog = self._backlog = self._backlog if self._backlog is not None else []
        if len(backlog) >= MAX_BACKLOG:
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
        """Tell the client why, and see to it that the wire ends."""
        raise NotImplementedError
