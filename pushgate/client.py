"""A client of every transport, for `pushgate listen`: payloads as they were published.

A `Place` is kept over connections: what a client that comes back with it has missed comes first.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from pushgate.errors import PushgateError

#: A position is dropped so long after its message, when as-of has moved on; as many are kept as a
#: gateway takes in one cursor.
_POSITION_SECONDS: Final = 120.0
_MAX_POSITIONS: Final = 64
_BINARY: Final = "pushgate.binary"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a client gets it; `payload` is byte for byte the published payload."""

    id: str
    type: str | None
    payload: bytes


class Refused(PushgateError):
    """The gateway refused the client: `status` of HTTP, and the gateway's `reason` in words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}" if reason else str(status))
        self.status = status
        self.reason = reason


class Place:
    """How far a client has come: as-of, and the last position of each partition.

    docs/protocol.md, "Cursors", has the rules. `told_gap` is called where messages were missed,
    `told_open` when a connection is open, before its first message.
    """

    def __init__(
        self,
        told_gap: Callable[[], None] = lambda: None,
        *,
        told_open: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session: str | None = None  # the cursor of a poll session
        self.opened = told_open
        self._told_gap = told_gap
        self._clock = clock
        self._as_of: str | None = None
        self._positions: dict[str, tuple[str, float]] = {}  # by partition: offset, since when

    @property
    def cursor(self) -> str | None:
        """What the next connection resumes from; None before a gateway has sent a cursor."""
        if self._as_of is None:
            return None
        offsets = (f"{partition}-{offset}" for partition, (offset, _) in self._positions.items())
        return ",".join((self._as_of, *offsets))

    @property
    def resumes(self) -> bool:
        """Whether the next connection gets what comes meanwhile."""
        return self._as_of is not None or self.session is not None

    def beat(self, cursor: str | None) -> None:
        """Take note of a hello or a heartbeat; one without a cursor is of a gateway without any.

        Such a gateway has ignored the cursor with which the client came.
        """
        if cursor is not None:
            self._move_time(cursor.partition(",")[0])
        elif self._as_of is not None:
            self._as_of = None
            self.gap()

    def move(self, cursor: str | None) -> None:
        """Take note of a message's cursor; its last position is the message's own."""
        if cursor is None:
            return
        as_of, *positions = cursor.split(",")
        self._move_time(as_of)
        if positions:
            partition, _, offset = positions[-1].rpartition("-")
            self._positions.pop(partition, None)  # set anew, it stands last
            self._positions[partition] = (offset, self._clock())
            if len(self._positions) > _MAX_POSITIONS:
                del self._positions[next(iter(self._positions))]

    def gap(self) -> None:
        """Take note that messages were missed: positions may be of a topic that is gone."""
        self._positions.clear()
        self._told_gap()

    def _move_time(self, as_of: str) -> None:
        if as_of == self._as_of:
            return
        self._as_of = as_of
        oldest = self._clock() - _POSITION_SECONDS
        self._positions = {
            partition: (offset, since)
            for partition, (offset, since) in self._positions.items()
            if since >= oldest
        }


def _from_json(form: dict[str, Any]) -> Message:
    data = form["data"]
    payload = b64decode(data) if form.get("encoding") == "base64" else data.encode()
    return Message(form["id"], form["type"], payload)


async def websocket(
    url: str, token: str, place: Place | None = None, *, ping_seconds: float | None = 20.0
) -> AsyncIterator[Message]:
    """Yield messages from a WebSocket until it closes. `url` is the gateway's, http:// or https://.

    The client pings every `ping_seconds`; with None never, as browsers never do.

    Raises:
        Refused: the gateway refused the client.
    """
    place = place or Place()
    address = f"ws{url.removeprefix('http')}/ws"
    subprotocols = [Subprotocol("pushgate.v1"), Subprotocol(f"bearer.{token}")]
    if place.cursor is not None:
        subprotocols.append(Subprotocol(f"cursor.{place.cursor.replace(',', '~')}"))
    connecting = connect(address, subprotocols=subprotocols, proxy=None, ping_interval=ping_seconds)
    try:
        connection = await connecting
    except InvalidStatus as error:
        refusal = error.response
        raise Refused(refusal.status_code, _reason(bytes(refusal.body or b""))) from error
    async with connection:
        place.opened()
        async for frame in connection:
            form = msgspec.json.decode(frame)
            if "data" in form:
                place.move(form.get("cursor"))
                yield _from_json(form)
            elif form.get("control") in ("hello", "heartbeat"):
                place.beat(form.get("cursor"))
            elif form.get("control") == "gap":
                place.gap()


async def sse(url: str, token: str, place: Place | None = None) -> AsyncIterator[Message]:
    """Yield messages from an event stream (SSE) until the stream ends.

    Raises:
        Refused: the gateway refused the client.
    """
    place = place or Place()
    # With `Accept: text/event-stream` a refusal for load would be an empty stream.
    headers = {"authorization": f"Bearer {token}"}
    timeout = httpx.Timeout(10.0, read=None)
    query = {} if place.cursor is None else {"cursor": place.cursor}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False) as http,
        http.stream("GET", "/sse", params=query) as response,
    ):
        if response.is_error:
            raise Refused(response.status_code, _reason(await response.aread()))
        place.opened()
        async for event in _events(response.aiter_raw()):
            if event.type == "pushgate.cursor":
                place.beat(event.id)
            elif event.type == "pushgate.gap":
                place.gap()
            elif event.id is not None and not event.is_control:
                cursor, _, message_id = event.id.rpartition(" ")
                place.move(cursor or None)
                yield _from_event(message_id, event)


async def poll(url: str, token: str, place: Place | None = None) -> AsyncIterator[Message]:
    """Yield messages from long polls until a poll fails.

    Raises:
        Refused: the gateway refused the client.
    """
    place = place or Place()
    headers = {"authorization": f"Bearer {token}"}
    is_open = False
    timeout = httpx.Timeout(10.0, read=70.0)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, trust_env=False
    ) as http:
        while True:
            query = {"cursor": place.session} if place.session else {}
            # The first is answered at once: its answer says that the session is open.
            response = await http.get("/poll", params=query if is_open else {**query, "wait": "0"})
            if response.is_error:
                raise Refused(response.status_code, _reason(response.content))
            if not is_open:
                is_open = True
                place.opened()
            answer = msgspec.json.decode(response.content)
            place.session = answer["cursor"]
            if answer.get("gap"):
                place.gap()
            for form in answer["messages"]:
                yield _from_json(form)


def _reason(body: bytes) -> str:
    """Return the reason in a refusal's body: one line of text."""
    return body.decode(errors="replace").strip()


TRANSPORTS: Final[dict[str, Callable[[str, str, Place], AsyncIterator[Message]]]] = {
    "ws": websocket,
    "sse": sse,
    "poll": poll,
}


@dataclass(frozen=True, slots=True)
class _Event:
    """An event of a stream; `id` is None for an event without one."""

    id: str | None
    type: str | None
    data: bytes

    @property
    def is_control(self) -> bool:
        """Whether the event is no message."""
        return (self.type or "").startswith("pushgate.") and self.type != _BINARY


def _from_event(message_id: str, event: _Event) -> Message:
    if event.type == _BINARY:
        return _from_json(msgspec.json.decode(event.data))
    return Message(message_id, event.type, event.data)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[_Event]:
    """Yield the events of a stream that have data (HTML standard §9.2.6)."""
    fields: dict[bytes, list[bytes]] = {}
    async for line in _lines(chunks):
        if line:
            name, _, value = line.partition(b":")
            fields.setdefault(name, []).append(value.removeprefix(b" "))
            continue
        if b"data" in fields:
            event_id, event_type = (
                fields[name][-1].decode() if name in fields else None for name in (b"id", b"event")
            )
            yield _Event(event_id, event_type, b"\n".join(fields[b"data"]))
        fields = {}


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split lines as the HTML standard does (§9.2.6): at LF, CR and CRLF alone, not at U+2028."""
    unsplit = b""
    async for chunk in chunks:
        unsplit += chunk
        if unsplit.endswith(b"\r"):
            continue  # the LF of a CRLF may be on its way
        *lines, unsplit = _LINE_END.split(unsplit)
        for line in lines:
            yield line
