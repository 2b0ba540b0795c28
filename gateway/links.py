"""Links: connections that processors hold to this node, for batches.

A link begins as `GET /push` on the internal port, with an upgrade (registry/frames.py). The socket
of a link has left HTTP, so a batch costs a frame and no request. Batches of one link are delivered
in their order, and each batch is answered before the next begins.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from starlette.types import Scope

from gateway import metrics
from gateway.connections.node import GatewayNode
from gateway.http.upgrade import switch, take_upgrade
from gateway.push import BadBatch, Pusher
from registry.frames import LINK_PROTOCOL, BadFrame, Frame, FrameReader, frame_head, probe_peer
from registry.message import BATCH_MEDIA_TYPE, MAX_BATCH_BYTES

#: How long a processor may take to close its half of a link after this node's half is closed.
_FAREWELL_SECONDS: Final = 1.0
#: How long a frame may stay incomplete (twice that at most, behind other frames): a processor gives
#: a batch up sooner (PUSHGATE_FORWARD_TIMEOUT_SECONDS), and a part of a frame takes up to 4 MiB.
_FRAME_SECONDS: Final = 10.0
_MEDIA_TYPE: Final = BATCH_MEDIA_TYPE.encode("ascii")
_encode: Final = msgspec.msgpack.Encoder().encode

log = structlog.get_logger("gateway.links")


class Links:
    """The links of one node, from the upgrade to the node's goodbye."""

    def __init__(self, node: GatewayNode, pusher: Pusher) -> None:
        self.node = node
        self.pusher = pusher
        self._links: set[Link] = set()
        self._said_goodbye = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def open(self, scope: Scope) -> None:
        """Answer `GET /push`: 101, after which the request's socket is a link.

        Raises:
            HTTPException: 426 where no link is asked for, 413 for a request with a body, 503 after
                the goodbye.
        """
        detached = await take_upgrade(scope, LINK_PROTOCOL, has_left=lambda: self._said_goodbye)
        if detached is None:
            return
        link = Link(self, detached.transport)
        self._links.add(link)
        self._empty.clear()
        metrics.LINKS.inc()
        link.begin(detached.rest)

    def forget(self, link: Link, reason: str) -> None:
        """Drop a link whose socket is gone; `reason` is a short name, fit for a label."""
        self._links.discard(link)
        metrics.LINKS.dec()
        metrics.LINKS_ENDED.labels(reason).inc()
        if not self._links:
            self._empty.set()

    async def close(self) -> None:
        """Say goodbye: answer the batches that have arrived, and end every link, in a second."""
        self._said_goodbye = True
        for link in list(self._links):
            link.end("goodbye")
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._empty.wait()
        for link in list(self._links):
            link.abort()

    def reopen(self) -> None:
        """Take links again: the goodbye does not count any more."""
        self._said_goodbye = False


class Link(asyncio.Protocol):
    """A link: frames in, answers out.

    A link keeps the batch under delivery, a further whole batch, the bytes of a read, and as many
    answers as fill the transport's buffer. Then the node reads and delivers nothing more.
    """

    __slots__ = (
        "_end_reason",
        "_frame_timer",
        "_frames",
        "_full",
        "_links",
        "_loop",
        "_peer_closed",
        "_reading",
        "_serving",
        "_transport",
    )

    def __init__(self, links: Links, transport: asyncio.Transport) -> None:
        self._links = links
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader(most_bytes=MAX_BATCH_BYTES)
        self._frame_timer: asyncio.TimerHandle | None = None  # runs while a frame is incomplete
        self._serving: asyncio.Task[None] | None = None  # delivers, and answers
        self._reading = False  # False: bytes wait in the kernel
        self._full = False  # answers wait for the processor to read
        self._peer_closed = False  # no byte of the processor follows
        #: The reason of the link's end, a short name; bytes that arrive afterwards are discarded.
        self._end_reason: str | None = None

    def begin(self, rest: bytes) -> None:
        """Become the protocol of the transport; answer the upgrade.

        `rest` are the bytes that have arrived behind the request.
        """
        transport = self._transport
        switch(transport, self, LINK_PROTOCOL)
        probe_peer(transport)
        self._frames.feed(rest)
        self._read(True)
        self._go_on()

    def end(self, reason: str) -> None:
        """Receive no more; answer the batches that have arrived whole, then close."""
        if self._end_reason is None:
            self._end_reason = reason
            self._go_on()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes of frames; begin to deliver when a frame is complete."""
        if self._end_reason is None:
            self._frames.feed(data)
            self._go_on()

    def eof_received(self) -> bool:
        """Answer the whole batches of a processor that has closed its half of the connection.

        Returns whether this node's half stays open for the answers, which TLS does not allow.
        """
        self._peer_closed = True
        if self._end_reason is None:
            self._end_reason = "broken" if self._frames.is_incomplete else "closed"
        self._go_on()
        return self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """Deliver no further batch while answers wait for the processor to read them."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on: the processor reads its answers."""
        self._full = False
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the socket is gone; a delivery that has begun goes on to its end."""
        if self._end_reason is None:
            self._end_reason = "closed" if exc is None and not self._frames else "broken"
        self._time_frame()
        if self._end_reason == "broken":
            self._log(str(exc or "the processor stopped in the middle of a frame"))
        self._links.forget(self, self._end_reason)

    def _go_on(self) -> None:
        """Deliver the next batch, read on, or close: the one place that decides."""
        self._time_frame()
        waits = self._frames.has_next
        if self._serving is not None:
            self._read(not waits)
        elif waits:
            if self._full or self._transport.is_closing():
                self._read(False)
            else:
                self._serving = self._loop.create_task(self._serve())
        elif self._end_reason is not None:
            self._close()
        else:
            self._read(True)

    def _time_frame(self) -> None:
        """Start the time limit of an incomplete frame, or stop it where there is none."""
        is_incomplete = self._end_reason is None and self._frames.is_incomplete
        if self._frame_timer is None:
            if is_incomplete:
                self._frame_timer = self._loop.call_later(
                    _FRAME_SECONDS, self._look_at_frame, self._frames.next_number
                )
        elif not is_incomplete:
            self._frame_timer.cancel()
            self._frame_timer = None

    def _look_at_frame(self, number: int) -> None:
        """End the link if frame `number` is still incomplete; otherwise look at the next."""
        self._frame_timer = None
        if self._frames.is_incomplete and self._frames.next_number == number:
            self._refuse("stalled", f"a frame stayed incomplete for {_FRAME_SECONDS:g} s")
        self._go_on()

    async def _serve(self) -> None:
        """Deliver and answer the batches that have arrived, in their order."""
        while not self._full and not self._transport.is_closing():
            frame = self._next_frame()
            if frame is None:
                break
            await self._deliver(frame)
            if self._frames.has_next:
                await asyncio.sleep(0)  # the loop's turn, between small batches
        self._serving = None
        self._go_on()

    def _next_frame(self) -> Frame | None:
        try:
            frame = self._frames.next()
        except BadFrame as bad:
            self._refuse("bad-frame", str(bad))
            return None
        if not self._reading:
            self._read(not self._frames.has_next)
        return frame

    async def _deliver(self, frame: Frame) -> None:
        """Deliver and answer a batch; a refused batch is the last of the link."""
        self._links.node.pushed(len(frame.body))
        try:
            _, answer = await self._links.pusher.batch(_MEDIA_TYPE, frame.body)
        except BadBatch as bad:
            self._answer(frame, _encode({"refused": bad.status, "reason": bad.detail}))
            self._refuse("bad-batch", bad.detail)
        except Exception:  # any fault: the processor gets an answer, and the node goes on
            log.exception("a batch failed")
            self._answer(frame, _encode({"refused": 500, "reason": "see the gateway's log"}))
            self._refuse("error", "a batch failed")
        else:
            self._answer(frame, answer)

    def _answer(self, frame: Frame, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame_head(frame.number, len(body)) + body)

    def _refuse(self, reason: str, detail: str) -> None:
        """End the link; bytes that have arrived behind the refused frame are discarded."""
        self._frames = FrameReader(most_bytes=0)
        self._end_reason = reason
        self._log(detail)

    def _log(self, detail: str) -> None:
        peer = self._transport.get_extra_info("peername")
        log.warning(
            "a processor's link ends; unanswered batches come again",
            reason=detail,
            processor=peer[0] if peer else "unknown",
        )

    def _read(self, wanted: bool) -> None:
        """Receive bytes, or let them wait in the kernel."""
        if wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _close(self) -> None:
        """Close this half, and discard bytes until the processor closes the other.

        A socket that is closed with unread bytes resets the connection, and the processor might
        lose the last answer (RFC 9112 §9.6).
        """
        transport = self._transport
        if transport.is_closing():
            return
        self._read(True)
        if self._peer_closed or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
        self._loop.call_later(_FAREWELL_SECONDS, transport.abort)
