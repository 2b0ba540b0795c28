"""A wire over an epoll set of its own (Linux, plaintext): a descriptor and a slotted object.

The event loop watches the set's one descriptor, so it knows nothing of the sockets in it, and an
idle connection costs no transport, no protocol and no handle. Level-triggered: what is not read
in one turn is reported in the next.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

import structlog

from gateway.wires import Streamed
from gateway.wires.backlog import Backlog

log = structlog.get_logger("gateway.wires.epoll")

_READ_BYTES: Final = 65_536
_EVENTS_A_TURN: Final = 256
_READING: Final = select.EPOLLIN | select.EPOLLRDHUP
_WRITING: Final = select.EPOLLOUT


class EpollSet:
    """The sockets of one event loop that are held outside of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._wires: list[EpollWire | None] = []  # by descriptor: a dict would cost ten times that
        loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Stop watching. The sockets are their holders' to close."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def take(
        self, transport: asyncio.Transport, held: Streamed, *, send_buffer_bytes: int
    ) -> EpollWire:
        """Take a transport's socket; the transport is over.

        Raises:
            OSError: no descriptor is left; the transport is as it was.
        """
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        transport.set_protocol(_NOBODY)
        transport.abort()  # closes its own descriptor; the socket lives on in ours
        if descriptor >= len(self._wires):
            self._wires += [None] * (descriptor + 1 - len(self._wires))
        return EpollWire(self, descriptor, held, send_buffer_bytes)

    def watch(self, descriptor: int, wire: EpollWire, events: int) -> None:
        """Tell a wire of these events from now on."""
        if self._wires[descriptor] is None:
            self._wires[descriptor] = wire
            self._epoll.register(descriptor, events)
        else:
            self._epoll.modify(descriptor, events)

    def drop(self, descriptor: int) -> None:
        """Forget a descriptor and close it."""
        if self._wires[descriptor] is not None:
            self._wires[descriptor] = None
            self._epoll.unregister(descriptor)
        os.close(descriptor)

    def _turn(self) -> None:
        wires = self._wires
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            wire = wires[descriptor]
            if wire is None:
                continue
            try:
                wire.ready(events)
            except Exception:
                # One connection's fault ends that connection, as with a transport, and no other.
                log.exception("a held connection failed")
                wire.abort()


class EpollWire:
    """Holds one socket."""

    __slots__ = ("_closing", "_descriptor", "_held", "_limit", "_listening", "_set", "_unsent")

    def __init__(self, within: EpollSet, descriptor: int, held: Streamed, limit: int) -> None:
        """`limit` bytes at most wait for a peer that does not read."""
        self._set = within
        self._descriptor = descriptor
        self._held = held
        self._limit = limit
        self._unsent: Backlog | None = None
        self._listening = False
        self._closing = False

    def listen(self) -> None:
        """Begin to receive."""
        if self._descriptor >= 0 and not self._closing:
            self._listening = True
            self._watch()
            self._lend()

    def write(self, data: bytes) -> bool:
        """Hand `data` on in order; False when the peer is gone or too far behind."""
        if self._descriptor < 0 or self._closing:
            return False
        if self._unsent is not None:
            self._unsent.append(data)
            return self._unsent.size <= self._limit or self._held.overflowed()
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return False
        if sent < len(data):  # one write fits, however long: the limit is for what joins it
            self._wait(Backlog(data[sent:], begun=sent > 0))
        return True

    def begun(self, rest: bytes) -> None:
        """Send the rest of a write that the holder began."""
        self._wait(Backlog(rest, begun=True))

    def drop_oldest(self, notice: bytes) -> int:
        """Drop the oldest writes until the rest fits."""
        return 0 if self._unsent is None else self._unsent.drop_oldest(self._limit, notice)

    def drop_all(self) -> None:
        """Drop what can be dropped."""
        if self._unsent is not None:
            self._unsent.drop_all()

    def close(self) -> None:
        """Close after what was written."""
        if self._unsent is None:
            self.abort()
        elif not self._closing:
            self._closing = True
            self._watch()

    def abort(self) -> None:
        """Close at once."""
        if self._descriptor >= 0:
            self._set.drop(self._descriptor)
            self._descriptor = self._held.direct = -1
            self._unsent = None
            # Never within the holder's own call, as with a transport.
            self._set.loop.call_soon(self._held.lost)

    def ready(self, events: int) -> None:
        """Do what the kernel says can be done."""
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
            self._held.received(data)

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
        if self._closing:
            self.abort()
        else:
            self._watch()
            self._lend()

    def _wait(self, unsent: Backlog) -> None:
        self._unsent = unsent
        self._held.direct = -1
        self._watch()

    def _lend(self) -> None:
        if self._listening and self._unsent is None:
            self._held.direct = self._descriptor

    def _watch(self) -> None:
        reading = _READING if self._listening and not self._closing else 0
        self._set.watch(self._descriptor, self, reading | (_WRITING if self._unsent else 0))


class _Nobody(asyncio.Protocol):
    __slots__ = ()


_NOBODY: Final = _Nobody()
