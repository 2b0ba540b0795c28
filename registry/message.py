"""The message: how it is read from a Kafka record, and its form in the internal batch.

The terms come from Web Push (RFC 8030): the header `push-ttl` is Web Push's TTL (§5.2),
`push-urgency` its Urgency (§5.3) and `push-collapse-key` its Topic (§5.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import blake2b
from typing import Final

import msgspec

from registry.errors import RegistryError

MAX_USER_BYTES: Final = 256
MAX_NAME_BYTES: Final = 128
#: The longest default id, `topic-partition-offset`: Kafka's topic names reach 249 bytes by
#: themselves, partitions 10 digits, offsets 19.
MAX_ID_BYTES: Final = 249 + 1 + 10 + 1 + 19
MAX_BATCH_MESSAGES: Final = 1_000
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_MEDIA_TYPE: Final = "application/msgpack"
#: Name and epoch of the node that a batch is meant for; any other node answers 421
#: (RFC 9110 §15.5.20).
NODE_HEADER: Final = "pushgate-node"
EPOCH_HEADER: Final = "pushgate-epoch"
URGENCIES: Final = frozenset({"very-low", "low", "normal", "high"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]")
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_DIGITS = re.compile(r"[0-9]{1,18}")
_RESERVED_TYPES = frozenset({"open", "error"})


class Push(msgspec.Struct, omit_defaults=True, gc=False):
    """One message as it travels from a processor to a gateway: an element of the internal batch.

    `data` is the payload as it was published. `type` is None where the publisher gave no type;
    `device` is None where the message is for all devices of the user. `id_scope` is what the id is
    unique in: messages of equal ids and different scopes are different messages. The scope is a
    digest of a CloudEvent's source, or the timestamp of a record that has no id of its own, or
    None: the id is unique by itself. `position` is the record's place in Kafka,
    `topic-partition-offset`, for cursors (gateway/connections/cursor.py): never guessed from an id,
    which a publisher may have chosen. For the gateway's latencies: `timestamp_ms` is the record's
    timestamp, Unix time in ms, None where the record has none; `lane` is the topic where the
    processor reads several, else None. `traceparent` (W3C Trace Context §3.2) names the span that
    the gateway's span is a child of; None where the message is not traced.
    """

    user: str
    data: bytes
    id: str
    type: str | None = None
    device: str | None = None
    id_scope: str | int | None = None
    position: str | None = None
    timestamp_ms: int | None = None
    lane: str | None = None
    traceparent: str | None = None


class _Boundary(Push, kw_only=True, gc=False):
    """A push of a batch that its node gives to no connection.

    Only connections that have taken this message before get the later messages of the batch.
    """

    boundary: bool


def boundary_of(push: Push) -> Push:
    """Return a push as the boundary of the user's messages that follow in a batch."""
    return _Boundary(**msgspec.structs.asdict(push), boundary=True)


class Envelope(msgspec.Struct, gc=False):
    """A message with its publisher's wishes for the delivery; `published_ms` is Unix time in ms."""

    push: Push
    published_ms: int
    ttl_seconds: int | None = None
    urgency: str = "normal"
    collapse_key: str | None = None

    def expired(self, now_ms: int) -> bool:
        """Whether the TTL has passed at `now_ms`, Unix time in milliseconds.

        A TTL of 0 never passes: 0 asks for delivery to the clients that are connected now, and
        for no later delivery (RFC 8030 §5.2).
        """
        if not self.ttl_seconds:
            return False
        return now_ms > self.published_ms + self.ttl_seconds * 1000


class RejectedRecord(RegistryError):
    """A record that breaks the publishing rules.

    `reason` is a short name, fit for a metric's label; `detail` says what is wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def valid_user(user: str) -> bool:
    """Whether a user id is 1–256 bytes of UTF-8 without control characters."""
    return _is_plain(user, MAX_USER_BYTES)


def valid_id(message_id: str) -> bool:
    """Whether a message id is 1–280 bytes of UTF-8 without spaces or control characters.

    No spaces, because the id is the last space-separated part of an SSE cursor.
    """
    if message_id.isascii():  # as in `_is_plain`
        return (
            0 < len(message_id) <= MAX_ID_BYTES
            and message_id.isprintable()
            and " " not in message_id
        )
    return _fits(message_id, MAX_ID_BYTES) and not _CONTROL_OR_SPACE.search(message_id)


def valid_type(event_type: str) -> bool:
    """Whether a type is 1–128 bytes of UTF-8 without control characters, and not reserved.

    Reserved for clients' own events are `open`, `error` and names that start with `pushgate.`.
    """
    return (
        _is_plain(event_type, MAX_NAME_BYTES)
        and event_type not in _RESERVED_TYPES
        and not event_type.startswith("pushgate.")
    )


def valid_device(device: str) -> bool:
    """Whether a device id is 1–128 bytes of UTF-8 without control characters."""
    return _is_plain(device, MAX_NAME_BYTES)


def from_record(
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    published_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    max_payload_bytes: int,
) -> Envelope:
    """Read the message in one Kafka record: the key is the user, the value the payload.

    `timestamp_ms` is the record's timestamp as Kafka has it, -1 for none. `published_ms` is the
    start of a TTL; the header `ce_time` takes precedence.

    Raises:
        RejectedRecord: the record breaks a publishing rule; `reason` names the rule.
    """
    if key is None:
        raise RejectedRecord("key", "no key: the record's key is the user id")
    user = _text("key", key)
    if not valid_user(user):
        raise RejectedRecord("key", "a user id is 1–256 bytes of UTF-8 without control characters")
    if value is None:
        raise RejectedRecord("value", "null value: send an empty one for an empty message")
    if len(value) > max_payload_bytes:
        raise RejectedRecord("too-large", f"{len(value)} bytes; the limit is {max_payload_bytes}")
    default_id = f"{topic}-{partition}-{offset}"
    written_ms = None if timestamp_ms < 0 else timestamp_ms
    if not headers:
        push = Push(user, value, default_id, None, None, timestamp_ms, default_id, written_ms)
        return Envelope(push, published_ms)
    # The last value of a repeated header counts, as with Kafka's own Headers.lastHeader.
    raw_fields = {name: raw for name, raw in headers if name in _HEADERS}
    fields = {name: _HEADERS[name](name, raw) for name, raw in raw_fields.items()}
    message_id, id_scope = _identity(fields, default_id, timestamp_ms)
    push = Push(
        user,
        value,
        message_id,
        fields.get("push-type") or fields.get("ce_type"),
        fields.get("push-device"),
        id_scope,
        default_id,
        written_ms,
    )
    return Envelope(
        push,
        _epoch_ms(fields["ce_time"]) if "ce_time" in fields else published_ms,
        int(fields["push-ttl"]) if "push-ttl" in fields else None,
        fields.get("push-urgency", "normal"),
        fields.get("push-collapse-key"),
    )


def _identity(
    fields: dict[str, str], default_id: str, timestamp_ms: int
) -> tuple[str, str | int | None]:
    """Return a message's id and the id's scope (`Push.id_scope`).

    A `ce_id` is unique within its source (CloudEvents 1.0.2, "id"). A default id is unique until
    its topic is deleted and made anew: offsets then start again, with other timestamps.
    """
    if "push-id" in fields:
        return fields["push-id"], None
    if "ce_id" in fields:
        source = fields.get("ce_source")  # of any length, hence the digest
        scope = blake2b(source.encode(), digest_size=16).hexdigest() if source else None
        return fields["ce_id"], scope
    return default_id, timestamp_ms


def _is_plain(text: str, limit: int) -> bool:
    """Whether a text is 1 to `limit` bytes of UTF-8 without control characters."""
    # A message has two such texts at least: a regular expression takes three times as long.
    if text.isascii():
        return 0 < len(text) <= limit and text.isprintable()
    return _fits(text, limit) and not _CONTROL.search(text)


def _fits(text: str, limit: int) -> bool:
    try:
        return 0 < len(text.encode()) <= limit
    except UnicodeEncodeError:  # a lone surrogate: a JSON escape can spell one
        return False


def _text(name: str, raw: bytes | None) -> str:
    if raw is None:
        raise RejectedRecord(name, "null header")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RejectedRecord(name, f"not UTF-8 at byte {error.start}") from error


def _reader(rule: Callable[[str], bool], rule_text: str) -> Callable[[str, bytes | None], str]:
    def read(name: str, raw: bytes | None) -> str:
        text = _text(name, raw)
        if not rule(text):
            raise RejectedRecord(name, rule_text)
        return text

    return read


def _publisher_id(text: str) -> bool:
    return valid_id(text) and _fits(text, MAX_NAME_BYTES)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text.upper())
    except ValueError:
        return False
    return bool(_RFC_3339.fullmatch(text))  # ISO 8601 has forms that RFC 3339 lacks


def _epoch_ms(text: str) -> int:
    return int(datetime.fromisoformat(text.upper()).timestamp() * 1000)


_ID_RULE = "1–128 bytes of UTF-8 without spaces or control characters"
_TYPE_RULE = "1–128 bytes without control characters; not open, error, nor pushgate.…"
_SOURCE_RULE = "a URI reference: not empty, without control characters"
_NAME_RULE = "1–128 bytes of UTF-8 without control characters"

_HEADERS: Final[dict[str, Callable[[str, bytes | None], str]]] = {
    "push-id": _reader(_publisher_id, _ID_RULE),
    "push-type": _reader(valid_type, _TYPE_RULE),
    "push-ttl": _reader(lambda text: bool(_DIGITS.fullmatch(text)), "whole seconds, 0 or more"),
    "push-urgency": _reader(URGENCIES.__contains__, "very-low, low, normal or high"),
    "push-collapse-key": _reader(valid_device, _NAME_RULE),
    "push-device": _reader(valid_device, _NAME_RULE),
    # CloudEvents, Kafka protocol binding 1.0.2 §3.2 (binary content mode).
    "ce_id": _reader(_publisher_id, _ID_RULE),
    "ce_source": _reader(lambda text: bool(text) and not _CONTROL.search(text), _SOURCE_RULE),
    "ce_type": _reader(valid_type, _TYPE_RULE),
    "ce_time": _reader(_is_time, "an RFC 3339 time with an offset"),
}
