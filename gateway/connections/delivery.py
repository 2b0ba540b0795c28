"""A message on its way to connections: encoded once per form, for any number of connections."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import msgspec

from registry.resume import Position, position_of

#: Encodes a message for one kind of connection: a frame, an event, a JSON object.
Form = Callable[["Delivery"], bytes]


class Delivery:
    """A message as the transports see it.

    `text` is the payload decoded as UTF-8. `text` is None where the payload is not UTF-8: then the
    JSON forms carry base64. `position` is the message's place in Kafka, None for a message that is
    in no log, and `as_of` the time of its cursor (cursor.py). `timestamp_ms` is the timestamp of
    its record, Unix time in ms, and `lane` its topic; None where these are not known, or all
    messages of a batch are of one topic.
    """

    __slots__ = (
        "_cursor",
        "_encoded",
        "_place",
        "as_of",
        "id",
        "lane",
        "payload",
        "position",
        "text",
        "timestamp_ms",
        "type",
    )

    def __init__(
        self,
        payload: bytes,
        *,
        message_id: str,
        event_type: str | None = None,
        text: str | None = None,
        position: str | None = None,
        as_of: str = "",
        timestamp_ms: int | None = None,
        lane: str | None = None,
    ) -> None:
        """`text` is the payload before UTF-8 encoding, where known: saves the decoding.

        `as_of` is the time of the node's cursors; empty for no cursors.
        """
        self.payload = payload
        self.id = message_id
        self.type = event_type
        self.text = _decoded(payload) if text is None else text
        self.position = position
        self.as_of = as_of
        self.timestamp_ms = timestamp_ms
        self.lane = lane
        self._place: Position | None = None  # read when it is asked for first
        self._cursor: str | None = None  # made when it is asked for first
        self._encoded: dict[Form, bytes] = {}

    @property
    def cursor(self) -> str | None:
        """What a client comes back with that has this message; None where clients don't resume."""
        if self._cursor is None and self.as_of:
            self._cursor = f"{self.as_of},{self.position}" if self.position else self.as_of
        return self._cursor

    @property
    def place(self) -> Position | None:
        """Topic, partition and offset; None for a message that is in no log."""
        if self._place is None and self.position is not None:
            self._place = position_of(self.position)
        return self._place

    def with_cursor(self, cursor: str) -> Delivery:
        """Return the message with another cursor."""
        copy = Delivery(
            self.payload,
            message_id=self.id,
            event_type=self.type,
            text=self.text,
            position=self.position,
        )
        copy._cursor = cursor
        return copy

    def encoded(self, form: Form) -> bytes:
        """Return the message in `form`; the first call for a form encodes the message."""
        encoded = self._encoded.get(form)
        if encoded is None:
            encoded = self._encoded[form] = form(self)
        return encoded


def _decoded(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


class _TextWithCursor(msgspec.Struct):
    id: str
    cursor: str
    type: str | None
    data: str


class _BinaryWithCursor(msgspec.Struct):
    id: str
    cursor: str
    type: str | None
    data: str
    encoding: str = "base64"


class _Text(msgspec.Struct):
    id: str
    type: str | None
    data: str


class _Binary(msgspec.Struct):
    id: str
    type: str | None
    data: str
    encoding: str = "base64"


_encode = msgspec.json.Encoder().encode


def json_form(delivery: Delivery) -> bytes:
    """Encode as the JSON object of long-poll and of binary SSE events."""
    if delivery.text is None:
        return _encode(_Binary(delivery.id, delivery.type, _base64(delivery)))
    return _encode(_Text(delivery.id, delivery.type, delivery.text))


def cursor_form(delivery: Delivery) -> bytes:
    """Encode as the JSON object of `pushgate.v1`, with the cursor if there is one."""
    cursor = delivery.cursor
    if cursor is None:
        return json_form(delivery)
    if delivery.text is None:
        return _encode(_BinaryWithCursor(delivery.id, cursor, delivery.type, _base64(delivery)))
    return _encode(_TextWithCursor(delivery.id, cursor, delivery.type, delivery.text))


def _base64(delivery: Delivery) -> str:
    return b64encode(delivery.payload).decode("ascii")
