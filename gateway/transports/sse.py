"""Server-sent events (HTML standard §9.2), encoded by sse-starlette."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import ClassVar, Final

import msgspec
from sse_starlette.event import ServerSentEvent
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway import metrics
from gateway.connections.closes import CLOSE_GRACE_SECONDS, Close, Next
from gateway.connections.connection import State, StreamConnection
from gateway.connections.delivery import Delivery, json_form
from gateway.entry.entry import Entry, Overloaded
from gateway.http.head import Head
from gateway.http.responses import END_HEAD, start_head
from gateway.takeover.format import Held, SseRecord, Stream

#: The type of events whose payload is not UTF-8.
BINARY_TYPE: Final = "pushgate.binary"
#: The range of a client's own delay before a reconnect (`retry:`), drawn per client, in
#: milliseconds.
RETRY_MS: Final = (1_000, 5_000)
#: The same range for a client whose turn to reconnect was drawn already, or is now.
_PARTING_RETRY_MS: Final = (100, 1_000)
#: The fields of every event stream. A proxy that compresses, or collects a response before passing
#: it on, would keep events back: `no-transform` (RFC 9111 §5.2.2.6) forbids the former,
#: `x-accel-buffering` (nginx's field, which other proxies know too) the latter.
_FIELDS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
    "connection": "close",
}
# The stream ends with the connection (RFC 9112 §6.3). Without a content-length or chunks, events
# are framed once less, and a connection that is cut ends the stream cleanly.
_HEAD: Final = start_head(200, _FIELDS)


async def connect(head: Head, entry: Entry) -> ASGIApp:
    """Answer `GET /sse`: hold the request's socket as an event stream, or refuse the request."""
    try:
        admitted = await entry.admit(head)
    except Overloaded as overloaded:
        if "text/event-stream" not in head.fields.get("accept", ""):
            raise
        # An EventSource never reconnects after a 503, but does reconnect after the end of a stream:
        # the refusal is a stream that ends at once. The metric counts a refusal with 503.
        entry.count_refusal(overloaded)
        return Response(retry(), headers={**_FIELDS, **entry.cors(head)})
    connection = SseConnection(admitted.identity, entry.node)
    resumes = entry.resume(connection, _cursor_text(head))
    answer = stream_head(
        admitted.cors_lines,
        heartbeat_seconds=entry.node.bounds.heartbeat_seconds,
        cursor=entry.node.cursor(connection),
    )
    if not resumes:
        metrics.GAPS.inc()
        answer += connection.gap_notice()
    return entry.hold(connection, admitted, answer)


def _cursor_text(head: Head) -> str | None:
    """Return the cursor that a client comes back with: of its last event's id, or of the query."""
    last_id = head.fields.get("last-event-id")
    return last_id.partition(" ")[0] if last_id else head.query.get("cursor")


def stream_head(cors_lines: bytes, *, heartbeat_seconds: float, cursor: str = "") -> bytes:
    """Return the response's head and the first event.

    Some intermediaries pass the head on only with the first bytes of the body.
    """
    return b"".join((_HEAD, cors_lines, END_HEAD, heartbeat(heartbeat_seconds, cursor)))


@lru_cache(maxsize=16)  # most connections have the node's cursor, which changes once a second
def heartbeat(interval_seconds: float, cursor: str = "") -> bytes:
    """Encode the event of a heartbeat: the interval in milliseconds for data, the cursor for id.

    An event and no comment: a page sees only events, and an id without data moves no client's
    cursor.
    """
    milliseconds = str(round(interval_seconds * 1_000))
    return _event(ServerSentEvent(milliseconds, event="pushgate.cursor", sep="\n"), cursor)


def event(delivery: Delivery) -> bytes:
    """Encode a message as one event, with the message's cursor, id and type.

    A payload that is not UTF-8 becomes a JSON object with base64, in an event of `BINARY_TYPE`.
    """
    data, name = delivery.text, delivery.type
    if data is None:
        data, name = delivery.encoded(json_form).decode(), BINARY_TYPE
    cursor = delivery.cursor
    event_id = delivery.id if cursor is None else f"{cursor} {delivery.id}"
    return _event(ServerSentEvent(data, event=name, sep="\n"), event_id)


def _event(event: ServerSentEvent, event_id: str) -> bytes:
    """Encode an event with its id behind its data: an event that is cut moves no cursor."""
    encoded = event.encode()
    return b"%bid: %b\n\n" % (encoded[:-1], event_id.encode()) if event_id else encoded


def retry() -> bytes:
    """Encode a drawn `retry:`, the delay before a reconnect.

    EventSource honours no other wish of a server.
    """
    return ServerSentEvent(retry=random.randint(*RETRY_MS), sep="\n").encode()  # noqa: S311


def control(name: str, *, retry_ms: int | None = None, **fields: object) -> bytes:
    """Encode a control event: type `pushgate.<name>`, a JSON object for data, no id."""
    data = msgspec.json.encode(fields).decode()
    return ServerSentEvent(data, event=f"pushgate.{name}", retry=retry_ms, sep="\n").encode()


class SseConnection(StreamConnection):
    """The connection of an SSE client: an event stream, from the response's head on."""

    __slots__ = ()
    transport: ClassVar[str] = "sse"
    form = staticmethod(event)

    def stream_record(self, held: Held, stream: Stream) -> SseRecord:
        """Return the record of the connection."""
        return SseRecord(held, stream)

    def received(self, data: bytes) -> None:
        """Ignore bytes that follow the request: an event stream has one direction."""

    def opened(self) -> None:
        """Start the heartbeat, out of step with connections that opened at the same time."""
        interval = self._keeper.bounds.heartbeat_seconds
        self._keeper.wake_at(self, interval * random.uniform(0.5, 1.0))  # noqa: S311

    def wake(self) -> None:
        """Send a heartbeat; after a goodbye, cut off a client that did not read.

        While a backlog waits, the backlog is the sign of life (slowness.py). A peer that is gone
        leaves the heartbeat unacknowledged, and the kernel then ends the connection
        (TCP_USER_TIMEOUT).
        """
        interval = self._keeper.bounds.heartbeat_seconds
        if self.state is State.CLOSING:
            self.abort("goodbye unread")
        else:
            if self.wire is not None and not self.wire.waits():
                self.write_control(heartbeat(interval, self._keeper.cursor(self)))
            self._keeper.wake_at(self, interval)

    def understands_reconnect(self) -> bool:
        """Say yes: a client that does not know the event reconnects when the stream ends."""
        return True

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        """Send the newest cursor, and the control event `reconnect`.

        The `retry:` is for clients that don't know the event, and wait for the stream's end.
        """
        cursor = self._keeper.cursor(self)
        newest = heartbeat(self._keeper.bounds.heartbeat_seconds, cursor) if cursor else b""
        after_ms = int(delay_seconds * 1_000)
        retry_ms = random.randint(*_PARTING_RETRY_MS)  # noqa: S311
        parting = control("reconnect", retry_ms=retry_ms, after_ms=after_ms, code=close.code)
        self.write_control(newest + parting)

    def gap_notice(self) -> bytes:
        """Return the control event `gap`, which tells the client of missed messages."""
        return control("gap")

    def say_goodbye(self, close: Close) -> None:
        """Send the control event `close`, and end the stream.

        The client reconnects after the delay in the event's `retry:`.
        """
        if self.wire is not None:
            delay_range = RETRY_MS if close.next is Next.LATER else _PARTING_RETRY_MS
            retry_ms = random.randint(*delay_range)  # noqa: S311
            goodbye = control("close", retry_ms=retry_ms, code=close.code, reason=close.reason)
            self.wire.write_control(goodbye)
            self.wire.close()
            # The wire closes after the backlog is sent: never, if the peer does not read.
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)
