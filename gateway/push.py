"""Takes a batch of messages to the hub, and returns a result for every message. Knows no HTTP.

A batch is decoded, its items are checked and addressed to users, and repeats are recognised. All
messages but the repeats are delivered to this node's connections.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Final

import msgspec

from gateway import metrics
from gateway.connections.delivery import Delivery
from gateway.connections.hub import Addressed, Hub, Refusal
from gateway.connections.repeats import Name, Repeats
from gateway.errors import GatewayError
from registry.message import (
    BATCH_MEDIA_TYPE,
    MAX_BATCH_MESSAGES,
    valid_device,
    valid_id,
    valid_type,
    valid_user,
)

#: The result of one message for one user: how many connections took the message, 0 where the user
#: is not on this node, or `{"error": …}`.
Result = int | dict[str, str]
#: How many items of a batch are looked up in the hub and encoded before the first write. Larger
#: slices are no faster, and their buffers become the process's peak memory.
_SLICE: Final = 200


class Item(msgspec.Struct):
    """An item of a batch: one message, for a user or for a list of users.

    `data` is a string, bytes (in MessagePack), or base64 text if `encoding` is "base64". Messages
    of equal ids and different `id_scope` are different messages, and no repeats. Unknown fields are
    ignored.
    """

    user: str | list[str]
    data: Any
    encoding: str | None = None
    id: str | None = None
    type: str | None = None
    device: str | None = None
    id_scope: str | int | None = None


class BadBatch(GatewayError):
    """A batch is refused as a whole; `status` is the HTTP status of the refusal."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class _BadItem(GatewayError):
    """An item can't be delivered to any user; `result` is the error in the item's result."""

    def __init__(self, result: str) -> None:
        super().__init__(result)
        self.result = result


class _Codec:
    """An encoding of batches and results: JSON for people, MessagePack for processors."""

    def __init__(self, module: Any, media_type: str) -> None:
        self.media_type = media_type.encode("ascii")
        self.encode: Callable[[object], bytes] = module.encode
        self._batch = module.Decoder(list[Item])
        self._raw = module.Decoder(list[msgspec.Raw])
        self._item = module.Decoder(Item)

    def decode(self, body: bytes) -> list[Item | None]:
        """Return a batch's items in order, with None in place of an item of the wrong shape.

        Raises:
            msgspec.DecodeError: the body is no list at all.
        """
        try:
            try:
                return self._batch.decode(body)  # type: ignore[no-any-return]
            except (msgspec.ValidationError, UnicodeDecodeError):
                return [self._item_or_none(raw) for raw in self._raw.decode(body)]
        except RecursionError as error:
            raise msgspec.DecodeError("nested too deeply") from error

    def _item_or_none(self, raw: msgspec.Raw) -> Item | None:
        try:
            return self._item.decode(raw)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


_JSON: Final = _Codec(msgspec.json, "application/json")
_PACKED: Final = _Codec(msgspec.msgpack, BATCH_MEDIA_TYPE)


class Pusher:
    """Pushes batches of messages into one node's connections."""

    def __init__(self, hub: Hub, repeats: Repeats, *, epoch: str, max_payload_bytes: int) -> None:
        """`epoch` is the prefix of the ids that are made for messages without an id."""
        self._hub = hub
        self._repeats = repeats
        self._epoch = epoch
        self._max_payload_bytes = max_payload_bytes
        self._numbers = count(1)

    def batch(self, media_type: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Push a batch; return the media type and the body of the answer, in the batch's encoding.

        The encoding is MessagePack where `media_type` names MessagePack, else JSON. At most 1,000
        messages.

        Raises:
            BadBatch: the body is no list of messages, or too long a list.
        """
        codec = _PACKED if media_type == _PACKED.media_type else _JSON
        try:
            items = codec.decode(body)
        except msgspec.DecodeError as error:
            raise BadBatch(400, f"the body is no list of messages: {error}") from error
        if len(items) > MAX_BATCH_MESSAGES:
            raise BadBatch(413, f"{len(items)} messages; at most {MAX_BATCH_MESSAGES}")
        metrics.BATCH.observe(len(items))
        results: list[Result | list[Result]] = []
        for start in range(0, len(items), _SLICE):
            results += self.push(items[start : start + _SLICE])
        return codec.media_type, codec.encode({"results": results})

    def push(self, items: Sequence[Item | None]) -> list[Result | list[Result]]:
        """Push items; return their results in order, a list of results for a list of users."""
        batch: list[Addressed] = []
        names: dict[int, Name] = {}
        errors = [self._address(item, batch, names) for item in items]
        hub_results = self._repeats.deliver(batch, names, self._hub.deliver)
        results_of_batch = iter(
            [
                result if result.__class__ is int and result else _not_taken(result, user)
                for result, (_, user, _) in zip(hub_results, batch, strict=True)
            ]
        )
        results = [
            _in_shape(item, results_of_batch) if error is None else _refused(item, error)
            for item, error in zip(items, errors, strict=True)
        ]
        _count(results)
        return results

    def _address(
        self, item: Item | None, batch: list[Addressed], names: dict[int, Name]
    ) -> str | None:
        """Add an item to the batch, once for every user of the item; or return the item's error.

        A message with an id may be a repeat: `names` gets the message's name, by the message's
        position in the batch.
        """
        if item is None:
            return "invalid"
        try:
            delivery = self._delivery(item)
        except _BadItem as bad:
            return bad.result
        users, device, published_id, scope = item.user, item.device, item.id, item.id_scope
        if isinstance(users, str):
            if published_id is not None:
                names[len(batch)] = (users, published_id, device, scope)
            batch.append((delivery, users, device))
            return None
        if published_id is not None:
            users_names = [(user, published_id, device, scope) for user in users]
            names.update(enumerate(users_names, len(batch)))
        batch += [(delivery, user, device) for user in users]
        return None

    def _delivery(self, item: Item) -> Delivery:
        data = item.data
        text = data if isinstance(data, str) and item.encoding is None else None
        payload = _payload(item)
        if len(payload) > self._max_payload_bytes:
            raise _BadItem("too-large")
        if item.id is not None and not valid_id(item.id):
            raise _BadItem("invalid")
        if item.type is not None and not valid_type(item.type):
            raise _BadItem("invalid")
        if item.device is not None and not valid_device(item.device):
            raise _BadItem("invalid")
        message_id = item.id or f"{self._epoch}-{next(self._numbers)}"
        return Delivery(payload, message_id=message_id, event_type=item.type, text=text)


def _not_taken(hub_result: int | Refusal, user: str) -> Result:
    """Return the result of a message that no connection has taken.

    User ids are checked only here: no connection has an invalid user id, so a message for an
    invalid id is never taken.
    """
    if isinstance(hub_result, Refusal):
        return {"error": hub_result.value}
    return hub_result if valid_user(user) else {"error": "invalid"}


def _in_shape(item: Item | None, results: Iterator[Result]) -> Result | list[Result]:
    """Return the next of the results; for a list of users the next results, as a list."""
    assert item is not None  # noqa: S101 - an item of the wrong shape has an error
    return next(results) if isinstance(item.user, str) else [*islice(results, len(item.user))]


def _refused(item: Item | None, error: str) -> Result | list[Result]:
    if item is None or isinstance(item.user, str):
        return {"error": error}
    return [{"error": error} for _ in item.user]


def _count(results: Sequence[Result | list[Result]]) -> None:
    """Count the results of a batch together: every increment of a counter takes a lock."""
    flat: list[Result] = []
    for result in results:
        flat += result if isinstance(result, list) else (result,)
    not_here = flat.count(0)
    errors = [result["error"] for result in flat if isinstance(result, dict)]
    for error in errors:
        metrics.PUSHED.labels(error).inc()
    _DELIVERED.inc(len(flat) - not_here - len(errors))
    _NOT_HERE.inc(not_here)


_DELIVERED: Final = metrics.PUSHED.labels("delivered")
_NOT_HERE: Final = metrics.PUSHED.labels("not-here")


def _payload(item: Item) -> bytes:
    data = item.data
    if item.encoding == "base64" and isinstance(data, str):
        try:
            return b64decode(data, validate=True)
        except ValueError as error:
            raise _BadItem("invalid") from error
    if item.encoding is not None:
        raise _BadItem("invalid")
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise _BadItem("invalid") from error
    raise _BadItem("invalid")
