"""Frames and descriptors between two gateway processes, over a Unix socket.

The frames are those of links (registry/frames.py). Descriptors travel with the first byte of their
frame (SCM_RIGHTS, unix(7)), and the kernel never joins those of two frames: they arrive in order.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from gateway.errors import GatewayError
from gateway.takeover import format as passed
from registry.frames import BadFrame, FrameReader, frame_head

#: Descriptors in a frame at most: the kernel takes 253 a message (SCM_MAX_FD).
MOST_DESCRIPTORS: Final = 250
#: Frames with descriptors that are not acknowledged at most: descriptors in flight count against
#: the user's limit of open files (unix(7), ETOOMANYREFS).
MOST_UNACKNOWLEDGED: Final = 2
#: A frame is as long as a user's buffers, which settings bound; the peer is of the same user.
_MOST_FRAME_BYTES: Final = 1 << 30
_READ_BYTES: Final = 1 << 18
#: Descriptors are offered again after so long, where too many are in flight.
_AGAIN_SECONDS: Final = 0.01
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class BrokenChannel(GatewayError):
    """The partner's bytes are no frames of ours, or descriptors are missing."""


class Delivered(NamedTuple):
    """A message with its descriptors, which are the reader's to close."""

    message: passed.Message
    descriptors: list[int]


class Inbox:
    """The messages that have arrived on a socket, and their descriptors."""

    def __init__(self, plug: socket.socket) -> None:
        self._plug = plug
        self._frames = FrameReader(most_bytes=_MOST_FRAME_BYTES)
        self._descriptors: deque[int] = deque()
        self._lacks_descriptors = False

    def receive(self) -> bool:
        """Read what has arrived; False at the end of the stream.

        Raises:
            OSError: the partner is gone, or nothing has arrived (BlockingIOError).
        """
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, flags, _ = self._plug.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % 4])
                self._descriptors.extend(descriptors)
        # This process has no room for more descriptors: the kernel has dropped them.
        self._lacks_descriptors |= bool(flags & socket.MSG_CTRUNC)
        self._frames.feed(data)
        return bool(data)

    def next(self) -> Delivered | None:
        """Take out the next message; None until all of it has arrived.

        Of a batch of connections fewer descriptors than sockets say that the rest was dropped.

        Raises:
            BrokenChannel: the bytes are no message.
        """
        try:
            frame = self._frames.next()
            message = None if frame is None else passed.decode(frame.body)
        except (BadFrame, ValueError) as error:
            raise BrokenChannel(str(error)) from error
        if message is None:
            return None
        if not (count := descriptors_of(message)):
            return Delivered(message, [])
        if self._lacks_descriptors:
            self.close()
            return Delivered(message, [])
        if len(self._descriptors) < count:
            raise BrokenChannel(f"{len(self._descriptors)} descriptors came, and not {count}")
        return Delivered(message, [self._descriptors.popleft() for _ in range(count)])

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def descriptors_of(message: passed.Message) -> int:
    """Return how many descriptors come with a message."""
    if isinstance(message, passed.Welcome):
        return 2
    if isinstance(message, passed.Connections):
        return sum(has_socket(record) for record in message.records)
    return 0


def has_socket(record: passed.ConnectionRecord) -> bool:
    """Whether a descriptor comes with a record: a session between two polls has none."""
    return not isinstance(record, passed.PollRecord) or record.parked is not None


class Reader(Protocol):
    """What a process does with its partner's messages."""

    def received(self, delivered: Delivered) -> None:
        """Take a message."""

    def ended(self, reason: str) -> None:
        """Take note that the partner is gone, or sends what is no message. Called once."""


class _Outgoing:
    """A frame on its way out: what is unsent of it, and descriptors to go with its first byte."""

    __slots__ = ("data", "descriptors")

    def __init__(self, data: bytes, descriptors: Sequence[int]) -> None:
        self.data = memoryview(data)
        self.descriptors = tuple(descriptors)


class Channel:
    """One process's end of the socket, in the event loop.

    What is sent stays in order. A frame with descriptors waits until few are unacknowledged, and
    everything behind it waits too.
    """

    def __init__(self, plug: socket.socket, inbox: Inbox | None = None) -> None:
        """`inbox` may have messages that came before."""
        plug.setblocking(False)
        self._plug = plug
        self._inbox = Inbox(plug) if inbox is None else inbox
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[_Outgoing] = deque()
        self._next_number = 0
        self._unacknowledged = 0
        self._again: asyncio.TimerHandle | None = None
        self._reader: Reader | None = None
        self._is_open = True
        #: Ticks of this process's clock since the partner's last byte.
        self.silent_ticks = 0
        #: Set whenever everything that was sent is with the kernel.
        self.flushed = asyncio.Event()
        self.flushed.set()

    def begin(self, reader: Reader, *, sent: int = 0) -> None:
        """Read from now on; `sent` frames were sent before, on the bare socket."""
        self._reader = reader
        self._next_number += sent
        self._loop.add_reader(self._plug.fileno(), self._readable)
        self._take_messages()

    @property
    def is_open(self) -> bool:
        """Whether the partner is there, as far as is known."""
        return self._is_open

    def send(self, message: passed.Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message; its descriptors stay open, and are to be closed once it is acknowledged.

        Nothing happens once the channel is closed.
        """
        if not self._is_open:
            return
        self._outgoing.append(_Outgoing(framed(message, self._next_number), descriptors))
        self._next_number += 1
        self.flushed.clear()
        self._flush()

    def acknowledged(self) -> None:
        """Take note that the partner has taken the oldest frame with descriptors, or refused it."""
        self._unacknowledged -= 1
        self._flush()

    def close(self) -> None:
        """End the channel. Harmless when repeated."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._plug.fileno())
        self._loop.remove_writer(self._plug.fileno())
        if self._again is not None:
            self._again.cancel()
        self._plug.close()
        self._inbox.close()
        self.flushed.set()

    def _readable(self) -> None:
        self.silent_ticks = 0
        try:
            goes_on = self._inbox.receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))
            return
        self._take_messages()
        if not goes_on:
            self._end("the other process has ended")

    def _take_messages(self) -> None:
        assert self._reader is not None  # noqa: S101 - set by `begin`
        try:
            while self._is_open and (delivered := self._inbox.next()) is not None:
                self._reader.received(delivered)
        except BrokenChannel as broken:
            self._end(str(broken))

    def _end(self, reason: str) -> None:
        if self._is_open:
            self.close()
            assert self._reader is not None  # noqa: S101 - set by `begin`
            self._reader.ended(reason)

    def _flush(self) -> None:
        """Write as much as the kernel takes."""
        try:
            while self._outgoing and self._may_go(self._outgoing[0]):
                self._write(self._outgoing[0])
        except BlockingIOError:
            self._loop.add_writer(self._plug.fileno(), self._flush)
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._again = self._loop.call_later(_AGAIN_SECONDS, self._flush)
            else:  # in a later turn: `send` is called from everywhere
                self._loop.call_soon(self._end, str(error))
            return
        if self._is_open:
            self._loop.remove_writer(self._plug.fileno())
        if not self._outgoing:
            self.flushed.set()

    def _may_go(self, outgoing: _Outgoing) -> bool:
        return not outgoing.descriptors or self._unacknowledged < MOST_UNACKNOWLEDGED

    def _write(self, outgoing: _Outgoing) -> None:
        if outgoing.descriptors:
            count = socket.send_fds(self._plug, [outgoing.data], outgoing.descriptors)
            outgoing.descriptors = ()
            self._unacknowledged += 1
        else:
            count = self._plug.send(outgoing.data)
        outgoing.data = outgoing.data[count:]
        if not outgoing.data:
            self._outgoing.popleft()


def framed(message: passed.Message, number: int) -> bytes:
    """Return the frame of a message, the `number`th of its direction."""
    body = passed.encode(message)
    return frame_head(number, len(body)) + body


def peer_of(plug: socket.socket) -> tuple[int, int]:
    """Return the process id and the user id of the peer, as the kernel has noted them.

    Linux; the process id is 0 where the peer is in another namespace.
    """
    credentials = plug.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(pid), int(uid)
