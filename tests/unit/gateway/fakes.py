"""A node and a socket as a connection sees them, which remember what they were told."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from gateway.closes import Close
from gateway.connection import Bounds, Connection, Identity
from gateway.delivery import Delivery

BOUNDS = Bounds(
    heartbeat_seconds=25.0,
    heartbeat_timeout_seconds=10.0,
    inbound_bytes=1_000,
    poll_grace_seconds=30.0,
    poll_buffer_bytes=4_096,
)


def identity(user: str = "alice", device: str | None = None) -> Identity:
    return Identity(user, device, 2_000_000_000)


def message(payload: bytes | str = b"hello", message_id: str = "m-1") -> Delivery:
    data = payload.encode() if isinstance(payload, str) else payload
    return Delivery(data, message_id=message_id)


class FakeKeeper:
    """The Keeper protocol of gateway/connection.py."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.forgotten = 0
        self.wake_in: float | None = None

    def release(self, connection: Connection, reason: str) -> None:
        self.released.append(reason)

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        self.wake_in = delay_seconds

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

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.aborted = False
        self.gone = False
        self.listening = False
        self.on_write: Callable[[], None] | None = None

    def listen(self) -> None:
        self.listening = True

    def write(self, data: bytes) -> bool:
        if self.on_write is not None:
            self.on_write()
        if self.gone or self.closed or self.aborted:
            return False
        self.sent += data
        return True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def take(self) -> bytes:
        """Give what was sent since the last call."""
        sent, self.sent = self.sent, b""
        return sent


class FakeConnection(Connection):
    """A connection for the hub and the clock."""

    transport: ClassVar[str] = "fake"

    def __init__(self, who: Identity | None = None, *, takes: bool = True) -> None:
        super().__init__(who or identity(), FakeKeeper())
        self.takes = takes
        self.got: list[Delivery] = []
        self._woken = 0
        self.on_deliver: Callable[[], object] = lambda: None
        self.on_wake: Callable[[], object] = lambda: None

    def deliver(self, delivery: Delivery) -> bool:
        self.on_deliver()
        if self.takes:
            self.got.append(delivery)
        return self.takes

    def close(self, close: Close) -> None:
        self._leave(close.reason)

    def wake(self) -> None:
        self._woken += 1
        self.on_wake()

    def woken(self) -> int:
        """Say how often; a method, so that mypy expects another answer each time."""
        return self._woken
