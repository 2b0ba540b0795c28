"""Resume links: connections that processors hold to this node for questions and stamps.

A resume link begins as `GET /resume` on the internal port, with an upgrade; registry/resume.py says
what is on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from starlette.types import Scope

from gateway import metrics
from gateway.connections.delivery import Delivery
from gateway.http.upgrade import switch, take_upgrade
from gateway.resume.questions import Questions
from registry.frames import BadFrame, FrameReader, frame_head, probe_peer
from registry.resume import (
    MAX_ANSWER_BYTES,
    MAX_RECEIPT_MESSAGES,
    RESUME_PROTOCOL,
    Ack,
    Ask,
    Receipt,
    Stamp,
    encode,
    word_in,
)

#: Bytes of questions that a processor may leave unread: a frozen one, for example.
_MOST_UNREAD_BYTES: Final = 16 * 1024 * 1024
#: Receipts wait while a processor leaves so many bytes unread: they must not end the link.
_RECEIPT_UNREAD_BYTES: Final = 1024 * 1024
#: A processor stamps every second; a link without a stamp for so long leads nowhere.
_SILENCE_SECONDS: Final = 15.0
#: How long links may take to end at the node's goodbye.
_FAREWELL_SECONDS: Final = 1.0

log = structlog.get_logger("gateway.resume")


class ResumeLinks:
    """The resume links of one node."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._links: set[ResumeLink] = set()
        self._said_goodbye = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def open(self, scope: Scope) -> None:
        """Answer `GET /resume`: 101, after which the request's socket is a resume link.

        Raises:
            HTTPException: 426 where no resume link is asked for, 413 for a request with a body, 503
                after the goodbye.
        """
        detached = await take_upgrade(scope, RESUME_PROTOCOL, has_left=lambda: self._said_goodbye)
        if detached is not None:
            link = ResumeLink(self._questions, detached.transport, ended=self._forget)
            self._links.add(link)
            self._empty.clear()
            link.begin(detached.rest)

    def _forget(self, link: ResumeLink) -> None:
        self._links.discard(link)
        if not self._links:
            self._empty.set()

    def advance(self, now: float) -> None:
        """Send receipts; end links whose processors have said nothing for too long.

        `now` is monotonic.
        """
        for link in list(self._links):
            if now - link.heard_at > _SILENCE_SECONDS:
                link.abort()
            else:
                link.send_receipt()

    async def close(self) -> None:
        """Say goodbye: end every link, in a second."""
        self._said_goodbye = True
        for link in list(self._links):
            link.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._empty.wait()

    def reopen(self) -> None:
        """Take links again: the goodbye does not count any more."""
        self._said_goodbye = False


class ResumeLink(asyncio.Protocol):
    """One link: stamps and answers in, asks and receipts out."""

    def __init__(
        self,
        questions: Questions,
        transport: asyncio.Transport,
        *,
        ended: Callable[[ResumeLink], object],
    ) -> None:
        self._questions = questions
        self._transport = transport
        self._ended = ended
        self._frames = FrameReader(most_bytes=MAX_ANSWER_BYTES)
        self._next_number = 0
        self.processor: str | None = None
        self.heard_at = time.monotonic()
        self._takes_receipts = False  # by the processor's last stamp
        #: For the next receipt: the offsets of taken messages by topic and partition.
        self._taken: dict[tuple[str, int], list[int]] = {}
        self._taken_messages = 0

    def begin(self, rest: bytes) -> None:
        """Become the protocol of the transport; answer the upgrade.

        `rest` are the bytes that have arrived behind the request.
        """
        transport = self._transport
        switch(transport, self, RESUME_PROTOCOL)
        probe_peer(transport)
        metrics.RESUME_LINKS.inc()
        transport.resume_reading()
        if rest:
            self.data_received(rest)

    def ask(self, ask: Ask) -> None:
        """Send questions."""
        self._send(encode(ask))

    def replayed(self, delivery: Delivery) -> None:
        """Note that a connection has taken a message of the processor's answers.

        For the next receipt, MAX_RECEIPT_MESSAGES at most. Further messages are dropped and
        counted where the processor does not read, or the link has ended.
        """
        place = delivery.place if self._takes_receipts else None
        if place is None:
            return
        if self._taken_messages >= MAX_RECEIPT_MESSAGES:
            self.send_receipt()
        if self._taken_messages >= MAX_RECEIPT_MESSAGES or self._transport.is_closing():
            metrics.RECEIPTS_DROPPED.inc()
            return
        topic, partition, offset = place
        self._taken.setdefault((topic, partition), []).append(offset)
        self._taken_messages += 1

    def send_receipt(self) -> None:
        """Send a receipt for the noted messages, unless the processor has much to read."""
        if not self._taken or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() < _RECEIPT_UNREAD_BYTES:
            taken = [(*partition, offsets) for partition, offsets in self._taken.items()]
            self._taken, self._taken_messages = {}, 0
            self._send(encode(Receipt(taken)))

    def _send(self, body: bytes) -> None:
        """Send a frame; end the link of a processor that does not read."""
        transport = self._transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            transport.abort()
            return
        transport.writelines((frame_head(self._next_number, len(body)), body))
        self._next_number += 1

    def abort(self) -> None:
        """End the link at once."""
        self._transport.abort()

    def close(self) -> None:
        """End the link, behind a last receipt."""
        self.send_receipt()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take stamps and answers; end a link with anything else on it."""
        self.heard_at = time.monotonic()
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                word = word_in(frame.body)
                if isinstance(word, Stamp):
                    self._take_stamp(word)
                else:
                    self._questions.answered(self, word)
        except (BadFrame, msgspec.MsgspecError) as bad:
            log.warning("a processor's resume link ends", reason=str(bad))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Take note that the link is gone; the next receipt is lost with it."""
        metrics.RESUME_LINKS.dec()
        metrics.RECEIPTS_DROPPED.inc(self._taken_messages)
        self._taken, self._taken_messages = {}, 0
        self._ended(self)
        self._questions.leave(self)

    def _take_stamp(self, stamp: Stamp) -> None:
        if self.processor is None:
            self.processor = stamp.processor
            self._questions.join(self)
        self._takes_receipts = stamp.receipts
        self._questions.stamped(stamp)
        self._send(encode(Ack(stamp.stamp_ms)))
