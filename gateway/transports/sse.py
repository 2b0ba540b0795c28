"""Server-sent events (HTML standard §9.2), encoded by sse-starlette."""

from __future__ import annotations

import random
from typing import ClassVar, Final

import msgspec
from sse_starlette.event import ServerSentEvent
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.connections.closes import CLOSE_GRACE_SECONDS, Close, Next
from gateway.connections.connection import State, StreamConnection
from gateway.connections.delivery import Delivery, json_form
from gateway.entry.entry import Entry, Overloaded, count_refusal
from gateway.http.head import Head
from gateway.http.responses import END_HEAD, start_head

BINARY_TYPE: Final = "pushgate.binary"
#: The client's own delay before it reconnects, drawn per client, in milliseconds.
RETRY_MS: Final = (1_000, 5_000)
#: The same where its turn to reconnect was drawn for it already.
_PARTING_RETRY_MS: Final = (100, 1_000)
_COMMENT: Final = b":\n\n"
# The stream ends with its connection: without a content-length or chunks each event is framed once
# less, and a connection that is cut ends the stream cleanly.
_HEAD: Final = start_head(
    200,
    {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
        "connection": "close",
    },
)


async def connect(head: Head, entry: Entry) -> ASGIApp:
    """Answer `GET /sse`: hold the request's socket as an event stream, or refuse the request."""
    try:
        admitted = await entry.admit(head)
    except Overloaded as overloaded:
        if "text/event-stream" not in head.fields.get("accept", ""):
            raise
        # An EventSource that gets a 503 never reconnects; when a stream ends, it does. The metric
        # counts the refusal that it is.
        count_refusal(overloaded)
        headers = {"cache-control": "no-store", "connection": "close", **entry.cors(head)}
        return Response(retry(), media_type="text/event-stream", headers=headers)
    connection = SseConnection(admitted.identity, entry.node)
    return entry.hold(connection, admitted, stream_head(admitted.cors_lines))


def stream_head(cors_lines: bytes) -> bytes:
    """Return the response's head and a comment, at which intermediaries pass the head on."""
    return b"".join((_HEAD, cors_lines, END_HEAD, _COMMENT))


def event(delivery: Delivery) -> bytes:
    """One event. A payload that is not UTF-8 becomes JSON with base64, of its own type."""
    data, name = delivery.text, delivery.type
    if data is None:
        data, name = delivery.encoded(json_form).decode(), BINARY_TYPE
    return ServerSentEvent(data, event=name, id=delivery.id, sep="\n").encode()


def retry() -> bytes:
    """Tell EventSource when to come back: the one wish it honours."""
    return ServerSentEvent(retry=random.randint(*RETRY_MS), sep="\n").encode()  # noqa: S311


def control(name: str, *, retry_ms: int | None = None, **fields: object) -> bytes:
    """One control event: of type `pushgate.…`, with JSON for data and no id."""
    data = msgspec.json.encode(fields).decode()
    return ServerSentEvent(data, event=f"pushgate.{name}", retry=retry_ms, sep="\n").encode()


class SseConnection(StreamConnection):
    """An event stream after its head."""

    __slots__ = ()
    transport: ClassVar[str] = "sse"
    form = staticmethod(event)

    def received(self, data: bytes) -> None:
        """Ignore what follows the request: the stream has one direction."""

    def opened(self) -> None:
        """Start the heartbeat, out of step with others that opened with this one."""
        interval = self._keeper.bounds.heartbeat_seconds
        self._keeper.wake_at(self, interval * random.uniform(0.5, 1.0))  # noqa: S311

    def wake(self) -> None:
        """Send a comment: a peer that is gone leaves it unacknowledged (TCP_USER_TIMEOUT)."""
        if self.state is State.CLOSING:
            self.abort("goodbye unread")
        elif self.write(_COMMENT):
            self._keeper.wake_at(self, self._keeper.bounds.heartbeat_seconds)

    def can_be_told(self) -> bool:
        """Say yes: what does not know the event comes back when the stream ends."""
        return True

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        """Send the control event, with a `retry:` for those that wait for the stream's end."""
        after = int(delay_seconds * 1_000)
        retry_ms = random.randint(*_PARTING_RETRY_MS)  # noqa: S311
        self.write(control("reconnect", retry_ms=retry_ms, after_ms=after, code=close.code))

    def gap_notice(self) -> bytes:
        """Tell of the gap."""
        return control("gap")

    def say_goodbye(self, close: Close) -> None:
        """Say why, and end the stream; the client comes back after its delay."""
        if self.wire is not None:
            delay = RETRY_MS if close.next is Next.LATER else _PARTING_RETRY_MS
            retry_ms = random.randint(*delay)  # noqa: S311
            last = control("close", retry_ms=retry_ms, code=close.code, reason=close.reason)
            self.wire.write(last)
            self.wire.close()
            # Closing waits for the flush, for ever if the peer does not read.
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)
