"""What clients of each kind say and hear: requests with a cursor, messages, controls.

The parsers are those of the benchmarks. A client that resumes keeps its cursor as its kind does:
`pushgate.v1` as the client library, in a `Place`; SSE as a browser's EventSource, which sends the
last `id:` that came (HTML standard §9.2.4); long-poll the cursor of the last answer. A plain
WebSocket has no cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import quote

import msgspec

from loadtest.clients import PollClient, SseClient, WebSocketClient
from pushgate.client import Place

#: The controls of `pushgate.v1` that move a client's time (docs/protocol.md, "Cursors").
_WITH_CURSOR: Final = frozenset({"hello", "heartbeat", "reconnect"})
#: The first control of a connection, on `pushgate.v1` and on SSE.
GREETINGS: Final = frozenset({"hello", "cursor"})


class Ear(Protocol):
    """Takes what a parser finds."""

    def hear(self, data: bytes) -> bool:
        """Take the payload of a message; return whether the client is without the message."""

    def heed(self, control: str, after_ms: int | None) -> None:
        """Take a control, by its name; `after_ms` is for `reconnect`."""


class Bookmark(Protocol):
    """How far a client has come, kept over its connections."""

    @property
    def cursor(self) -> str | None:
        """What the next connection resumes from; None for a client that begins."""


@dataclass(slots=True)
class LastCursor:
    """The bookmark of a client that sends the last cursor as it came."""

    cursor: str | None = None


class Speaker(Protocol):
    """One connection of a client: its request, and the parser of what comes."""

    open: bool  # the answer's head has come
    greets: ClassVar[bool]  # whether a control comes before all messages

    def opening(self, token: str) -> bytes:
        """Return the request that opens the connection."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return the bytes to answer with.

        Raises:
            LoadtestError: refused, or closed by a Close frame.
        """


class PlainSpeaker(WebSocketClient):
    """A WebSocket without a subprotocol: payloads and nothing else."""

    __slots__ = ()
    greets: ClassVar = False

    def __init__(self, ear: Ear, bookmark: Bookmark) -> None:
        super().__init__(ear.hear)

    def opening(self, token: str) -> bytes:
        """Return the opening handshake."""
        return self.request("/ws", token)


class _Frame(msgspec.Struct):
    """A frame of `pushgate.v1`: a message's has `data`, a control's `control`."""

    data: str = ""
    control: str | None = None
    cursor: str | None = None
    after_ms: int | None = None


_frame: Final = msgspec.json.Decoder(_Frame).decode


class V1Speaker(WebSocketClient):
    """A WebSocket with the subprotocol `pushgate.v1`."""

    __slots__ = ("_ear", "_place")
    greets: ClassVar = True

    def __init__(self, ear: Ear, place: Place) -> None:
        super().__init__(self._take)
        self._ear = ear
        self._place = place

    def opening(self, token: str) -> bytes:
        """Return the opening handshake."""
        cursor = self._place.cursor
        resumes = f", cursor.{cursor.replace(',', '~')}" if cursor else ""
        field = f"Sec-WebSocket-Protocol: pushgate.v1{resumes}"
        return _with_field(self.request("/ws", token), field)

    def _take(self, data: bytes) -> None:
        frame = _frame(data)
        if frame.control is None:
            if self._ear.hear(frame.data.encode()):
                self._place.move(frame.cursor)
            elif frame.cursor is not None:  # a copy, by the other connection of a hand-over
                self._place.beat(frame.cursor)
            return
        if frame.control in _WITH_CURSOR:
            self._place.beat(frame.cursor)
        elif frame.control == "gap":
            self._place.gap()
        self._ear.heed(frame.control, frame.after_ms)


class EventSourceSpeaker(SseClient):
    """An event stream, read as a browser's EventSource reads it.

    It knows no `reconnect`: it comes back when the stream ends.
    """

    __slots__ = ("_ear", "_last")
    greets: ClassVar = True

    def __init__(self, ear: Ear, last: LastCursor) -> None:
        super().__init__(ear.hear)
        self._ear = ear
        self._last = last

    def opening(self, token: str) -> bytes:
        """Return the request."""
        request = self.request("/sse", token)
        last_id = self._last.cursor
        return _with_field(request, f"Last-Event-ID: {last_id}") if last_id else request

    def walk(self, data: bytes) -> bytes:
        """Parse whole events; the rest of an event that is cut off is never heard."""
        *events, self.rest = data.split(b"\n\n")
        for event in events:
            # A dict: the drill's payloads are of one line.
            self._dispatch(dict(line.partition(b": ")[::2] for line in event.split(b"\n")))
        return b""

    def _dispatch(self, fields: Mapping[bytes, bytes]) -> None:
        if b"id" in fields:
            self._last.cursor = fields[b"id"].decode()
        kind = fields.get(b"event", b"").decode()
        if kind.startswith("pushgate."):
            self._ear.heed(kind.removeprefix("pushgate."), None)
        elif b"data" in fields:
            self._ear.hear(fields[b"data"])


class PollSpeaker(PollClient):
    """Polls whose waits are shorter than the balancer's and the drill's patience."""

    __slots__ = ("_ear", "_last")
    greets: ClassVar = False
    wait_seconds: ClassVar[int] = 10

    def __init__(self, ear: Ear, last: LastCursor) -> None:
        super().__init__(ear.hear)
        self._ear = ear
        self._last = last

    def opening(self, token: str) -> bytes:
        """Return the first poll."""
        self.polls_with(token)
        request = self.request("/poll", token)
        cursor = self._last.cursor
        if cursor is None:
            return request
        return request.replace(b"?wait=0", f"?wait=0&cursor={quote(cursor)}".encode())

    def take(self, answer: Mapping[str, Any]) -> None:
        """Take a whole answer: where it tells of a gap, the messages are those behind the gap."""
        if answer.get("gap"):
            self._ear.heed("gap", None)
        super().take(answer)
        self._last.cursor = answer["cursor"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of client.

    `bookmark` makes what a client keeps; `resumes` is whether it is used. A client that `roams`
    opens a connection for each poll, which a balancer leads to any node.
    """

    speaker: Callable[[Ear, Any], Speaker]
    bookmark: Callable[[], Bookmark]
    resumes: bool = True
    roams: bool = False


KINDS: Final = {
    "ws-plain": Kind(PlainSpeaker, LastCursor, resumes=False),
    "ws-v1": Kind(V1Speaker, Place),
    "sse": Kind(EventSourceSpeaker, LastCursor),
    "poll": Kind(PollSpeaker, LastCursor),
    "poll-roaming": Kind(PollSpeaker, LastCursor, roams=True),
}


def _with_field(request: bytes, field: str) -> bytes:
    return request.replace(b"\r\n\r\n", f"\r\n{field}\r\n\r\n".encode())
