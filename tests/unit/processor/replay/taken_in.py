"""Messages as the consumer takes them in, for unit tests of what is kept of them."""

from __future__ import annotations

import msgspec

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from registry.message import Envelope, Push

P0, P1 = TopicPartition("push", 0), TopicPartition("push", 1)
NOW_MS = 1_764_360_000_000


class Partition:
    """A partition whose messages a test makes."""

    def __init__(self, number: int = 0) -> None:
        self.name = TopicPartition("push", number)
        self.progress = Progress(self.name, lane=0)

    def message(
        self,
        offset: int,
        user: str = "alice",
        *,
        device: str | None = None,
        ttl: int | None = None,
        collapse_key: str | None = None,
        data: bytes = b"x",
        published_ms: int = NOW_MS,
    ) -> Message:
        """Make the message at an offset, and begin it."""
        self.progress.begin(offset, size=1, timestamp_ms=NOW_MS)
        place = f"{self.name.topic}-{self.name.partition}-{offset}"
        push = Push(user, data, place, device=device, position=place)
        envelope = Envelope(push, published_ms, ttl, collapse_key=collapse_key)
        return Message(envelope, self.progress, offset)

    def messages(self, *offsets: int, user: str = "alice") -> list[Message]:
        return [self.message(offset, user) for offset in offsets]


def push_of(encoded: bytes) -> Push:
    return msgspec.msgpack.decode(encoded, type=Push)
