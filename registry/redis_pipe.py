"""A connection to Redis for short commands: commands are one write, and their replies one call.

redis-py takes twice the CPU for a short command (104 µs; here 50, and a bare socket takes 44):
packing in Python, a connection out of the pool and back, and an awaited read. A look-up is one
command; users who connect are registered by one script in 10 ms, with an argument for every user.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

#: What hiredis returns while a reply is incomplete.
_INCOMPLETE: Final = object()


class _Call:
    """Commands that were sent together, and the replies so far."""

    __slots__ = ("commands", "future", "replies")

    def __init__(self, commands: int, future: asyncio.Future[list[Any]]) -> None:
        self.commands = commands
        self.future = future
        self.replies: list[Any] = []


class RedisPipe(asyncio.Protocol):
    """One connection; replies come in the order of commands.

    The callers bound the calls under way: a registry has a look-up or a batch of registrations, a
    heartbeat and a reading of the nodes at once, each with a time-out.

    The transport has been through TLS and AUTH; this protocol takes the transport over.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        parse_error: Callable[[str], Exception],
        broken: Callable[[str], Exception],
        ended: Callable[[Exception | None], None],
    ) -> None:
        """`parse_error` makes an error of Redis's text, `broken` one of a connection that ended.

        `ended` is called once, when the connection has ended.
        """
        self._transport = transport
        self._broken = broken
        self._ended = ended
        self._replies = hiredis.Reader(
            protocolError=broken, replyError=parse_error, notEnoughData=_INCOMPLETE
        )
        self._calls: deque[_Call] = deque()
        self._given_up = False

    @property
    def usable(self) -> bool:
        """Whether further commands may be sent."""
        return not self._given_up and not self._transport.is_closing()

    async def ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands, one at least, in one write; return the replies.

        An error that Redis replies is what `parse_error` makes, in place of the reply. Where the
        connection ends before the last reply, what `broken` makes is raised. A caller that gives
        the replies up ends the connection: only a reply in time shows that the connection works.
        """
        try:
            self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        except RuntimeError as error:
            # After a reset uvloop refuses a write, and tells `connection_lost` some turns later.
            self._given_up = True
            raise self._broken(str(error)) from error
        future = asyncio.get_running_loop().create_future()
        self._calls.append(_Call(len(commands), future))
        try:
            replies: list[Any] = await future
        except asyncio.CancelledError:
            if future.cancelled():  # else the replies have come in the same turn of the loop
                self._given_up = True
                self._transport.abort()
            raise
        return replies

    def data_received(self, data: bytes) -> None:
        """Take bytes of replies."""
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not _INCOMPLETE:
            if isinstance(reply, hiredis.PushNotification):
                continue
            if not self._calls:
                # Redis says why it ends the connection, without a question.
                self._given_up = True
                self._transport.abort()
                return
            call = self._calls[0]
            call.replies.append(reply)
            if len(call.replies) == call.commands:
                self._calls.popleft()
                if not call.future.done():
                    call.future.set_result(call.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the calls without all replies."""
        self._given_up = True
        while self._calls:
            call = self._calls.popleft()
            if not call.future.done():
                call.future.set_exception(self._broken(str(exc or "the connection ended")))
        self._ended(exc)
