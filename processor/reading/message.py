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
        "missed",
        "node",
        "number",
        "offered",
        "offset",
        "pending",
        "progress",
        "push",
        "replaced",
        "size",
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
        self.node: Node | None = None  # the first node that took the message
        self.missed = 0  # nodes with connections that may not have got the message
        self.undelivered = False  # a node did not deliver: the user may be elsewhere by now
        self.looked_again = False  # the one fresh look-up after a stale result is used up
        self.expired = False  # the TTL had passed before the message could be sent
        #: A newer message of the same user, device and collapse key was read. Nodes that did not
        #: have this message by then do not get it.
        self.replaced = False
        self.failure: str | None = None  # the reason of the last failure to deliver

    def drop_payload(self) -> None:
        """Forget the payload of a message that will not be sent; the outcome is still reported."""
        self.push = self.envelope.push = msgspec.structs.replace(self.push, data=b"")


class Rejection(NamedTuple):
    """A record in breach of the publishing rules, with the progress of the record's partition."""

    progress: Progress
    record: Record
    error: RejectedRecord
    published_ms: int  # the record's timestamp; the time of reading where the record has none
