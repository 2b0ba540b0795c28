"""A wire over an epoll set of its own (Linux, plaintext): a descriptor and a slotted object.

The event loop watches the set's one descriptor and knows nothing of the sockets in the set, so an
idle connection costs no transport, no protocol and no handle. Level-triggered: bytes that are not
read in one turn of the loop are reported again in the next.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import Final

import structlog

from gateway.wires import Holder
from gateway.wires.backlog import Backlog

log = structlog.get_logger("gateway.wires.epoll")

_READ_BYTES: Final = 65_536
_EVENTS_A_TURN: Final = 256
_READING: Final = select.EPOLLIN | select.EPOLLRDHUP
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
            OSError: no descriptor is left; the transport is unchanged.
        """
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        transport.set_protocol(_UNHEARD)
        transport.abort()  # closes the transport's descriptor; the duplicate keeps the socket open
        if descriptor >= len(self._wires):
            self._wires += [None] * (descriptor + 1 - len(self._wires))
        return EpollWire(self, descriptor, holder, send_buffer_bytes)

    def watch(self, descriptor: int, wire: EpollWire, events: int) -> None:
        """Report `events` to the wire from now on, and no other events."""
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
                # An error in a connection ends only this connection, as with a transport.
                log.exception("a held connection failed")
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

    def listen(self) -> None:
        """Begin to receive."""
        if self._descriptor >= 0 and not self._closing:
            self._listening = True
            self._watch()
            self._offer_direct()

    def write(self, data: bytes) -> bool:
        """Hand `data` to the kernel or the backlog; False when the peer is gone or too slow."""
        if self._descriptor < 0 or self._closing:
            return False
        if self._unsent is not None:
            self._unsent.append(data)
            return self._unsent.size <= self._limit or self._holder.overflowed()
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return False
        if sent < len(data):  # the first write always fits; the limit counts when more writes join
            self._wait_for_room(Backlog(data[sent:], begun=sent > 0))
        return True

    def finish(self, rest: bytes) -> None:
        """Send the rest of a write that was begun at `direct`."""
        self._wait_for_room(Backlog(rest, begun=True))

    def drop_oldest(self, notice: bytes) -> int:
        """Drop the oldest writes until the rest of the backlog fits; return how many."""
        return 0 if self._unsent is None else self._unsent.drop_oldest(self._limit, notice)

    def drop_all(self) -> None:
        """Drop every write that has not begun to go out."""
        if self._unsent is not None:
            self._unsent.drop_all()

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
            self._unsent = None
            # In a later turn of the loop, as with a transport: never within a call by the holder.
            self._set.loop.call_soon(self._holder.lost)

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
        """Tell the peer that no more bytes come (shutdown(2)); `_read` sees the peer's own end."""
        lent = socket.socket(fileno=self._descriptor)
        try:
            lent.shutdown(socket.SHUT_WR)
        except OSError:  # the peer has reset the connection
            self.abort()
        finally:
            lent.detach()

    def _wait_for_room(self, unsent: Backlog) -> None:
        """Let writes wait in a backlog until the kernel has room."""
        self._unsent = unsent
        self.direct = -1
        self._watch()

    def _offer_direct(self) -> None:
        if self._listening and self._unsent is None:
            self.direct = self._descriptor

    def _watch(self) -> None:
        reading = _READING if self._listening or self._closing else 0
        self._set.watch(self._descriptor, self, reading | (_WRITING if self._unsent else 0))


class _Unheard(asyncio.Protocol):
    """Takes the last calls of a transport whose socket was taken out of the event loop."""

    __slots__ = ()


_UNHEARD: Final = _Unheard()
