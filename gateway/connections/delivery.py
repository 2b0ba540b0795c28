"""A message on its way to connections: encoded once per form, for any number of connections."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import msgspec

#: Encodes a message for one kind of connection: a frame, an event, a JSON object.
Form = Callable[["Delivery"], bytes]


class Delivery:
    """A message as the transports see it.

    `text` is the payload decoded as UTF-8. `text` is None where the payload is not UTF-8: then the
    JSON forms carry base64.
    """

    __slots__ = ("_encoded", "id", "payload", "text", "type")

    def __init__(
        self,
        payload: bytes,
        *,
        message_id: str,
        event_type: str | None = None,
        text: str | None = None,
    ) -> None:
        """`text` is the payload before UTF-8 encoding, where known: saves the decoding."""
        self.payload = payload
        self.id = message_id
        self.type = event_type
        self.text = _decoded(payload) if text is None else text
        self._encoded: dict[Form, bytes] = {}

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
    """Encode as the JSON object of `pushgate.v1`, of long-poll and of binary SSE events."""
    if delivery.text is None:
        data = b64encode(delivery.payload).decode("ascii")
        return _encode(_Binary(delivery.id, delivery.type, data))
    return _encode(_Text(delivery.id, delivery.type, delivery.text))
