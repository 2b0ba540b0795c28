"""A wire over an epoll set of its own (Linux, plaintext): a descriptor and a slotted object.

The event loop watches the set's one descriptor and knows nothing of the sockets in the set, so an
idle connection costs no transport, no protocol and no handle. Level-triggered: bytes that are not
read in one turn of the loop are reported again in the next.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

import structlog

from gateway.sockets import duplicate, forsake
from gateway.takeover.format import Unsent
from gateway.wires import CapturedSocket, Holder
from gateway.wires.backlog import Backlog, Control
from gateway.wires.kernel import (
    acknowledged_bytes,
    close_half,
    set_user_timeout,
    unacknowledged_bytes,
)

log = structlog.get_logger("gateway.wires.epoll")

_READ_BYTES: Final = 65_536
_EVENTS_A_TURN: Final = 256
_ENDING: Final = select.EPOLLRDHUP  # the peer's end alone: bytes wait in the kernel
_READING: Final = select.EPOLLIN | _ENDING
_WRITING: Final = select.EPOLLOUT


class EpollSet:
    """An epoll set of sockets, and the one descriptor of the set in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        # Indexed by descriptor: a dict would take ten times the memory.
        self._wires: list[EpollWire | None] = []
        loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Stop watching. Closing the sockets is left to their holders."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def take(
        self, transport: asyncio.Transport, holder: Holder, *, send_buffer_bytes: int
    ) -> EpollWire:
        """Take a transport's socket out of the event loop; the transport ends.

        Raises:
            OSError: no descriptor is left, or no watch (epoll(7)); the transport is unchanged.
        """
        descriptor = duplicate(transport)
        try:
            wire = self.adopt(descriptor, holder, send_buffer_bytes=send_buffer_bytes)
        except OSError:
            os.close(descriptor)
            raise
        forsake(transport)
        return wire

    def adopt(self, descriptor: int, holder: Holder, *, send_buffer_bytes: int) -> EpollWire:
        """Take a socket by its descriptor, which is the wire's from now on.

        Raises:
            OSError: no watch is left (epoll(7)); the descriptor is still the caller's.
        """
        if descriptor >= len(self._wires):
            self._wires += [None] * (descriptor + 1 - len(self._wires))
        wire = EpollWire(self, descriptor, holder, send_buffer_bytes)
        try:
            self.watch(descriptor, wire, _ENDING)
        except OSError:
            self._wires[descriptor] = None
            raise
        return wire

    def watch(self, descriptor: int, wire: EpollWire, events: int) -> None:
        """Report `events` to the wire from now on, and no other events."""
        if self._wires[descriptor] is None:
            self._wires[descriptor] = wire
            self._epoll.register(descriptor, events)
        else:
            self._epoll.modify(descriptor, events)

    def drop(self, descriptor: int) -> None:
        """Forget a descriptor and close it."""
        self.release(descriptor)
        os.close(descriptor)

    def release(self, descriptor: int) -> None:
        """Forget a descriptor, which stays open."""
        if self._wires[descriptor] is not None:
            self._wires[descriptor] = None
            self._epoll.unregister(descriptor)

    def _turn(self) -> None:
        wires = self._wires
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            wire = wires[descriptor]
            if wire is None:
                continue
            try:
                wire.ready(events)
            except Exception:
                # An error in a connection ends only this connection, as with a transport.
                log.exception("a held connection failed", connection=wire.holder_id)
                wire.abort()


class EpollWire:
    """Holds one socket by its descriptor."""

    __slots__ = (
        "_closing",
        "_descriptor",
        "_holder",
        "_limit",
        "_listening",
        "_set",
        "_unsent",
        "direct",
    )

    def __init__(self, within: EpollSet, descriptor: int, holder: Holder, limit: int) -> None:
        """At most `limit` bytes wait for a peer that does not read."""
        self.direct = -1
        self._set = within
        self._descriptor = descriptor
        self._holder = holder
        self._limit = limit
        self._unsent: Backlog | None = None
        self._listening = False
        self._closing = False

    @property
    def holder_id(self) -> str:
        """The name of the holder's connection."""
        return self._holder.id

    def listen(self) -> None:
        """Begin to receive."""
        if self._descriptor >= 0 and not self._closing:
            self._listening = True
            self._watch()
            self._offer_direct()

    def write(self, data: bytes) -> bool:
        """Hand a message to the kernel or the backlog; False when gone, or it does not fit."""
        unsent = self._unsent
        if unsent is None:
            return self._write_now(data)
        if self._closing or unsent.size + len(data) > self._limit:
            return False
        unsent.append(data)
        return True

    def write_control(self, data: bytes) -> None:
        """Hand control bytes to the kernel or the backlog, though the backlog be full."""
        unsent = self._unsent
        if unsent is None:
            self._write_now(Control(data))
        elif not unsent.has_room_for_control(len(data), limit=self._limit):
            self.abort()
        elif not self._closing:
            unsent.append(Control(data))

    def _write_now(self, data: bytes) -> bool:
        if self._descriptor < 0 or self._closing:
            return False
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return False
        if sent < len(data):  # the first write always fits; the limit counts when more writes join
            rest = data[sent:]
            is_control = isinstance(data, Control)
            self._wait_for_room(Backlog(Control(rest) if is_control else rest, begun=sent > 0))
        return True

    def finish(self, rest: bytes) -> None:
        """Send the rest of a write that was begun at `direct`."""
        self._wait_for_room(Backlog(rest, begun=True))

    def displace(self, data: bytes, notice: bytes) -> int:
        """Take a message in place of the oldest messages; return how many were dropped."""
        if self._unsent is None:
            return 0
        self._unsent.append(data)
        return self._unsent.drop_oldest(self._limit, notice)

    def waits(self) -> bool:
        """Whether a backlog waits for the peer."""
        return self._unsent is not None

    def progress(self) -> int:
        """Return how many bytes the peer has acknowledged, or how many the backlog has sent."""
        acknowledged = acknowledged_bytes(self._descriptor)
        if acknowledged is not None or self._unsent is None:
            return acknowledged or 0
        return self._unsent.sent_bytes

    def all_taken(self) -> bool:
        """Whether nothing waits, here or in the kernel."""
        return self._unsent is None and not unacknowledged_bytes(self._descriptor)

    def bear(self, seconds: float) -> None:
        """Have the kernel bear a peer that takes no bytes for `seconds`; 0: as long as it will."""
        set_user_timeout(self._descriptor, seconds)

    @property
    def can_be_captured(self) -> bool:
        """Whether the socket is open."""
        return self._descriptor >= 0 and not self._closing

    def capture(self) -> CapturedSocket:
        """Give the socket up for the next process."""
        self._set.release(self._descriptor)
        captured = CapturedSocket(
            self._descriptor, None if self._unsent is None else self._unsent.record()
        )
        self._descriptor = self.direct = -1
        self._unsent = None
        return captured

    def go_on(self, unsent: Unsent | None) -> None:
        """Receive and send where the wire of the earlier process has stopped."""
        if unsent is not None:
            self._unsent = Backlog.adopt(unsent)
        self.listen()

    def close(self) -> None:
        """Close this side after the backlog is sent, and discard bytes until the peer closes."""
        if self._descriptor >= 0 and not self._closing:
            self._closing = True
            self.direct = -1
            # The peer may read only when all its bytes are taken: from now on they are.
            self._watch()
            if self._unsent is None:
                self._close_half()

    def abort(self) -> None:
        """Close at once."""
        if self._descriptor >= 0:
            self._set.drop(self._descriptor)
            self._descriptor = self.direct = -1
            unsent, self._unsent = self._unsent, None
            messages = 0 if unsent is None else unsent.messages()
            # In a later turn of the loop, as with a transport: never within a call by the holder.
            self._set.loop.call_soon(self._holder.lost, messages)

    def ready(self, events: int) -> None:
        """Read and write as far as the socket is ready; `events` are those of epoll_wait(2)."""
        if events & _WRITING:
            self._flush()
        if events & ~_WRITING and self._descriptor >= 0:
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.abort()  # a half-closed peer can't be pushed to for long
        elif self._listening and not self._closing:
            self._holder.received(data)

    def _flush(self) -> None:
        unsent = self._unsent
        if unsent is None:
            return
        try:
            while unsent:
                part = unsent.first()
                count = os.write(self._descriptor, part)
                unsent.sent(count)
                if count < len(part):
                    return
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        self._unsent = None
        self._watch()
        if self._closing:
            self._close_half()
        else:
            self._offer_direct()

    def _close_half(self) -> None:
        """Tell the peer that no more bytes come; `_read` sees the peer's own end."""
        try:
            close_half(self._descriptor)
        except OSError:  # the peer has reset the connection
            self.abort()

    def _wait_for_room(self, unsent: Backlog) -> None:
        """Let writes wait in a backlog until the kernel has room."""
        self._unsent = unsent
        self.direct = -1
        self._watch()
        self._holder.backlogged()

    def _offer_direct(self) -> None:
        if self._listening and self._unsent is None:
            self.direct = self._descriptor

    def _watch(self) -> None:
        reading = _READING if self._listening or self._closing else _ENDING
        self._set.watch(self._descriptor, self, reading | (_WRITING if self._unsent else 0))
