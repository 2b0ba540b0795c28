"""A record in hand: a message on its way to an outcome, or a rejection."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import msgspec

from processor.reading.kafka import Record, UnreadableRecord
from processor.reading.progress import Progress
from registry.directory import Node
from registry.message import Envelope, RejectedRecord, from_record


class Message:
    """A message from intake to outcome: the place in Kafka, and the state of sending.

    reading sets the place, sending sets the state (dispatch.py), and outcomes reads both.
    """

    __slots__ = (
        "envelope",
        "expired",
        "failure",
        "key",
        "lane",
        "looked_again",
        "missed_at",
        "number",
        "offered",
        "offset",
        "pending",
        "progress",
        "push",
        "replaced",
        "size",
        "taken_at",
        "took",
        "undelivered",
        "under_way",
        "waiting",
        "waiting_at",
    )

    def __init__(
        self, envelope: Envelope, progress: Progress, offset: int, *, size: int = 0
    ) -> None:
        """`size` is the number of bytes that `progress` counts for the message.

        The message is the last that `progress` has begun.
        """
        self.envelope = envelope
        self.size = size
        self.push = envelope.push
        self.progress = progress
        self.offset = offset
        self.number = progress.begun - 1  # among the messages of the partition
        self.lane = progress.lane
        #: Messages of an equal key keep their order. The key is a user within a lane.
        self.key: Hashable = (self.lane, self.push.user) if self.lane else self.push.user
        self.under_way = False  # looked up, or sent: more than queued
        self.pending = 0  # nodes whose answer is awaited
        self.offered: tuple[Node, ...] = ()  # nodes that were given the message to deliver
        #: Of the pending nodes, those where the message waits: the node is silent, or the user's
        #: connections there have no room.
        self.waiting_at: tuple[Node, ...] = ()
        self.waiting = False  # all pending nodes are nodes where the message waits, or were so once
        self.took = 0  # connections that took the message
        self.taken_at: tuple[Node, ...] = ()  # nodes that took the message, the first node first
        #: Nodes with connections of the user that may be without the message.
        self.missed_at: tuple[Node, ...] = ()
        self.undelivered = False  # a node did not deliver: the user may be elsewhere by now
        self.looked_again = False  # the one fresh look-up after a stale result is used up
        self.expired = False  # the TTL had passed before the message could be sent
        #: A newer message of the same user, device and collapse key was read. Nodes that did not
        #: have this message by then do not get it.
        self.replaced = False
        self.failure: str | None = None  # the reason of the last failure to deliver

    @property
    def missed(self) -> int:
        """How many nodes have connections of the user that may be without the message."""
        return len(self.missed_at)

    def drop_payload(self) -> None:
        """Forget the payload of a message that will not be sent; the outcome is still reported."""
        self.push = self.envelope.push = msgspec.structs.replace(self.push, data=b"")


class Rejection(NamedTuple):
    """A record in breach of the publishing rules, with the progress of the record's partition."""

    progress: Progress
    record: Record
    error: RejectedRecord
    published_ms: int  # the record's timestamp; the time of reading where the record has none


def envelope_of(record: Record, published_ms: int, max_payload_bytes: int) -> Envelope:
    """Read the message in a record; `published_ms` is the start of a TTL.

    Raises:
        RejectedRecord: the record breaks a publishing rule.
    """
    if isinstance(record, UnreadableRecord):
        raise RejectedRecord("unreadable", "a header here or before has a name that is not UTF-8")
    return from_record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        published_ms=published_ms,
        key=record.key,
        value=record.value,
        headers=record.headers,
        max_payload_bytes=max_payload_bytes,
    )
