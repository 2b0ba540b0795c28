"""A record in hand: a message on its way to an outcome, or a rejection."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import msgspec

from processor.reading.kafka import Record
from processor.reading.progress import Progress
from registry.directory import Node
from registry.message import Envelope, RejectedRecord


class Message:
    """A message from its intake to its outcome: its place in Kafka, and how far sending is."""

    __slots__ = (
        "envelope",
        "expired",
        "failure",
        "key",
        "lane",
        "looked_again",
        "node",
        "offset",
        "pending",
        "progress",
        "push",
        "replaced",
        "size",
        "stale",
        "took",
        "tried",
    )

    def __init__(
        self, envelope: Envelope, progress: Progress, offset: int, *, size: int = 0
    ) -> None:
        """`size` is the number of bytes that `progress` counts for this message."""
        self.envelope = envelope
        self.size = size
        self.push = envelope.push
        self.progress = progress
        self.offset = offset
        self.lane = progress.lane
        #: Messages of one key keep their order.
        self.key: Hashable = (self.lane, self.push.user) if self.lane else self.push.user
        self.pending = 0  # nodes that have not answered yet
        self.tried: tuple[Node, ...] = ()  # nodes that have answered, or failed to
        self.took = 0  # connections that took the message
        self.node: Node | None = None  # the first node that took the message
        self.stale = False  # a node that was tried does not have the user (any more)
        self.looked_again = False  # the user was looked up afresh after a stale answer
        self.expired = False
        self.replaced = False  # by a newer message of the same collapse key
        self.failure: str | None = None  # the reason of the last failure to deliver

    def drop_payload(self) -> None:
        """Forget the payload of a message that will not be sent; its outcome is yet to be told."""
        self.push = self.envelope.push = msgspec.structs.replace(self.push, data=b"")


class Rejection(NamedTuple):
    """A record that breaks the publishing rules, with the partition that it is counted in."""

    progress: Progress
    record: Record
    error: RejectedRecord
