"""One connection: identity, wire, state. Every transition of its life is in this file."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from gateway.closes import Close
from gateway.delivery import Delivery
from gateway.wires import Wire

#: How long a client may take to read a goodbye, and to answer a Close frame (Zuul's close grace).
CLOSE_GRACE_SECONDS: Final = 4.0
#: Messages that wait while a handshake waits for the registry, one second at most.
MAX_BACKLOG: Final = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a credential speaks for."""

    user: str
    device: str | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take and how long it may be silent; shared by all of a node."""

    heartbeat_seconds: float
    heartbeat_timeout_seconds: float
    inbound_bytes: int
    poll_grace_seconds: float
    poll_buffer_bytes: int


class State(enum.Enum):
    """The states of a connection."""

    OPENING = "authenticated and on its way into the registry; messages wait for the handshake"
    OPEN = "the client has its 101 or 200; messages go out as they come"
    CLOSING = "released: no message reaches it any more; the end of its socket is awaited"
    CLOSED = "gone; released and forgotten"


class Keeper(Protocol):
    """The node, as a connection sees it."""

    def release(self, connection: Connection, reason: str) -> None:
        """Let go of a connection that takes no more messages. Called once a connection."""

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`; replaces an earlier call."""

    def forget(self, connection: Connection) -> None:
        """Wake the connection no more: it is closed. Called once a connection."""


class Connection:
    """What the hub holds: somebody's way to get messages.

    One slotted object; no task, no queue, no timer of its own.
    """

    __slots__ = ("_keeper", "identity", "state", "wake_slot")
    transport: ClassVar[str]

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        self.identity = identity
        self.state = State.OPENING
        self.wake_slot = -1
        self._keeper = keeper

    def deliver(self, delivery: Delivery) -> bool:
        """Send one message; False when this connection can't take it."""
        raise NotImplementedError

    def close(self, close: Close) -> None:
        """Tell the client to go, in the transport's own way. Harmless when repeated."""
        raise NotImplementedError

    def wake(self) -> None:
        """Do what `wake_at` was asked for."""
        raise NotImplementedError

    def _leave(self, reason: str) -> bool:
        """OPENING, OPEN → CLOSING: be released, once; False where that has happened before."""
        if self.state not in (State.OPENING, State.OPEN):
            return False
        self.state = State.CLOSING
        self._keeper.release(self, reason)
        return True

    def _closed(self, reason: str) -> None:
        """Any → CLOSED: be forgotten as well, once."""
        self._leave(reason)
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._keeper.forget(self)


class StreamConnection(Connection):
    """A connection that is a held socket: WebSocket and SSE."""

    __slots__ = ("_backlog", "_wire")

    def __init__(self, identity: Identity, keeper: Keeper) -> None:
        super().__init__(identity, keeper)
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

    def close(self, close: Close) -> None:
        """OPENING, OPEN → CLOSING: say goodbye; without a handshake there is none to say."""
        if self.state is State.OPENING:
            self.abort(close.reason)
        elif self._leave(close.reason):
            self.say_goodbye(close)

    def ended(self, reason: str, last_words: bytes) -> None:
        """OPEN, CLOSING → CLOSING: the peer is done; send what is due to it and close."""
        if self._wire is not None:
            spoken = self.state is State.OPEN  # before its answer, a client expects nothing else
            if self._leave(reason) and spoken:
                self._wire.write(last_words)
            self._wire.close()

    def abort(self, reason: str) -> None:
        """Any → CLOSING: close without a word and without waiting. Harmless when repeated."""
        self._leave(reason)
        if self._wire is not None:
            self._wire.abort()

    def overflowed(self) -> None:
        """End a client that does not read: it has missed what comes next."""
        self.abort("too slow")

    def lost(self) -> None:
        """Any → CLOSED: the socket is gone."""
        self._wire = None
        self._closed("lost")

    def write(self, data: bytes) -> bool:
        """Hand bytes to the wire; False when the connection takes no more."""
        if self.state is State.OPEN and self._wire is not None:
            if self._wire.write(data):
                return True
            self.abort("lost")
            return False
        return self.state is State.OPENING and self._hold_back(data)

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

    def say_goodbye(self, close: Close) -> None:
        """Tell the client why, and see to it that the wire ends."""
        raise NotImplementedError
