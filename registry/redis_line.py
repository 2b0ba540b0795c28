"""A connection to Redis for short commands: a command is one write, and its reply one call.

redis-py spends some 190 µs on a command, and the socket's share is 60: the rest is packing in
Python, a connection out of the pool and back, and an awaited read. A look-up is one command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis

#: What hiredis returns while a reply is incomplete.
_INCOMPLETE: Final = object()


class RedisLine(asyncio.Protocol):
    """One connection, with any number of commands under way; replies come in their order.

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
        self._waiting: deque[asyncio.Future[Any]] = deque()
        #: Whether further commands may be sent.
        self.usable = True

    async def ask(self, command: tuple[Any, ...]) -> Any:
        """Send a command, and return its reply.

        Raises what `parse_error` makes, where Redis replies with an error, and what `broken` makes,
        where the connection ends before the reply. Whoever gives a reply up ends the connection:
        only a reply in time shows that the connection still works.
        """
        try:
            self._transport.write(hiredis.pack_command(command))
        except RuntimeError as error:
            # After a reset uvloop refuses a write, and tells `connection_lost` some turns later.
            self.usable = False
            raise self._broken(str(error)) from error
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        try:
            return await reply
        except asyncio.CancelledError:
            self.usable = False
            self._transport.abort()
            raise

    def data_received(self, data: bytes) -> None:
        """Take bytes of replies."""
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not _INCOMPLETE:
            if isinstance(reply, hiredis.PushNotification):
                continue
            waiting = self._waiting.popleft()
            if waiting.done():
                continue
            if isinstance(reply, Exception):
                waiting.set_exception(reply)
            else:
                waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the commands without a reply."""
        self.usable = False
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(self._broken(str(exc) if exc else "the connection ended"))
        self._ended(exc)
