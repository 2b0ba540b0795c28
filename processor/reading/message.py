"""A message in hand: where it comes from, where it was tried, what came of it."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from processor.outcomes.outcome import DELIVERED, EXPIRED, OFFLINE, REPLACED, Kind, Outcome, outcome
from processor.reading.progress import Progress
from processor.sending.forward import NO_DEVICE, Failure, Result
from registry.directory import Node
from registry.message import Envelope


class Message:
    """A message from its intake to its outcome."""

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
        """`size` is what `progress` counts it as."""
        self.envelope = envelope
        self.size = size
        self.push = envelope.push
        self.progress = progress
        self.offset = offset
        self.lane = progress.lane
        #: Messages of one key keep their order.
        self.key: Hashable = (self.lane, self.push.user) if self.lane else self.push.user
        self.pending = 0  # nodes that have not answered yet
        self.tried: tuple[Node, ...] = ()
        self.took = 0
        self.node: Node | None = None  # the first that took it
        self.stale = False  # a node that was tried does not have the user (any more)
        self.looked_again = False
        self.expired = False
        self.replaced = False
        self.failure: Failure | None = None

    @property
    def outcome(self) -> Outcome:
        """What came of it, once it is settled."""
        if self.took:
            return DELIVERED
        if self.replaced:
            return REPLACED
        if self.failure is not None:
            return outcome(Kind.FAILED, self.failure.reason)
        return EXPIRED if self.expired else OFFLINE

    def drop_payload(self) -> None:
        """Keep what is said of it and not what it says: it will not be sent."""
        self.push = self.envelope.push = msgspec.structs.replace(self.push, data=b"")

    def note(self, node: Node, result: Result | None) -> None:
        """Take note of a node's answer; None where the message was not sent to it."""
        self.pending -= 1
        if result is None:
            return
        self.tried = (*self.tried, node)
        if isinstance(result, Failure):
            self.stale = True
            if result != NO_DEVICE:
                self.failure = result
        elif result:
            self.took += result
            self.node = self.node or node
        else:
            self.stale = True
