"""One held connection to one gateway, for batches and their answers: a link.

Requests of HTTP have a fixed price: httpx takes 0.6 to 1.2 ms of CPU for one, and the gateway 0.2,
however few the messages. registry/frames.py says what a link is on the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from processor import metrics
from processor.errors import ProcessorError
from registry.frames import MAX_ANSWER_BYTES, BadFrame, FrameReader, frame_head, probe_peer

#: The most batches of a link that are sent and not answered: with two the gateway always has work
#: under a backlog, and more make no difference (docs/design.md, "Why links").
WINDOW: Final = 2
_OVERDUE: Final = "timeout"


class LinkEnded(ProcessorError):
    """The link has ended, and with it all batches without an answer; `reason` is a short name."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Link(asyncio.Protocol):
    """Sends batches as frames, and returns their answers, which come in the same order.

    When the link ends, every batch without an answer ends in an error: the gateway may have
    delivered the batch, in whole or in part.
    """

    __slots__ = (
        "_asked",
        "_due",
        "_end",
        "_frames",
        "_loop",
        "_next_number",
        "_timeout_seconds",
        "_timer",
        "_transport",
    )

    def __init__(
        self, transport: asyncio.Transport, rest: bytes, *, timeout_seconds: float
    ) -> None:
        """Become the protocol of a transport that was upgraded; `rest` has arrived on it.

        `timeout_seconds` bounds the time from a batch to its answer; for a batch that is sent
        behind another, the time from the other's answer.
        """
        self._transport = transport
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader(most_bytes=MAX_ANSWER_BYTES)
        #: Batches that are sent and not answered, in order: WINDOW at most, see `ask`.
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._next_number = 0
        self._due = 0.0  # the loop's time by which the next answer has to come
        self._timer: asyncio.TimerHandle | None = None
        self._end: tuple[str, str] | None = None  # why the link has ended: reason and detail
        metrics.LINKS.inc()
        probe_peer(transport)
        transport.set_protocol(self)
        transport.resume_reading()
        if rest:
            self.data_received(rest)

    @property
    def ended(self) -> bool:
        """Whether the link carries no more batches."""
        return self._end is not None

    async def ask(self, body: bytes) -> bytes:
        """Send a batch; return the body of its answer. For WINDOW callers at once.

        Raises:
            TimeoutError: an answer took too long, and the link has ended.
            LinkEnded: the link ended before the answer.
        """
        if self._end is not None:
            raise _error(*self._end)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        if not self._asked:
            self._due = self._loop.time() + self._timeout_seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look_at_clock)
        self._asked.append(answer)
        self._transport.writelines((frame_head(self._next_number, len(body)), body))
        self._next_number += 1
        try:
            return await answer
        except asyncio.CancelledError:
            # A later batch would be answered behind this one, at a time that has no bound.
            self.end("given-up", "a batch was given up")
            raise
        finally:
            # The error's traceback has this frame, and the frame would have the error: such a
            # circle keeps the batches of all frames until a full collection.
            del answer

    def end(self, reason: str, detail: str) -> None:
        """Close at once; each batch without an answer gets an error. Harmless when repeated."""
        if self._end is not None:
            return
        self._end = (reason, detail)
        metrics.LINKS.dec()
        metrics.LINKS_ENDED.labels(reason).inc()
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(_error(reason, detail))
        self._asked.clear()

    def data_received(self, data: bytes) -> None:
        """Take answers; end the link where one is no answer to the oldest batch."""
        if self._end is not None:
            return
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                if not self._asked:
                    raise BadFrame(f"answer {frame.number} is for no batch")
                answer = self._asked.popleft()
                self._due = self._loop.time() + self._timeout_seconds
                if not answer.done():
                    answer.set_result(frame.body)
        except BadFrame as bad:
            self.end("bad-frame", str(bad))

    def eof_received(self) -> None:
        """End the link: the gateway has said goodbye, and no answer follows."""
        self.end("closed", "the gateway has closed it")

    def connection_lost(self, exc: Exception | None) -> None:
        """End the link."""
        self.end("closed" if exc is None else "broken", str(exc or "it is closed"))

    def _look_at_clock(self) -> None:
        """End the link if an answer is overdue; otherwise look again when the next may be.

        One timer serves many batches: a timer for each would cost more than the batch's frame.
        """
        self._timer = None
        if not self._asked:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look_at_clock)
        else:
            self.end(_OVERDUE, "the gateway did not answer in time")


def _error(reason: str, detail: str) -> LinkEnded | TimeoutError:
    """Return an error for one batch: an error that many raise keeps the frames of all."""
    return TimeoutError(detail) if reason == _OVERDUE else LinkEnded(reason, detail)
