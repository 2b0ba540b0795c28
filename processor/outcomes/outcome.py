"""What became of a message."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache

from processor.reading.message import Message


class Kind(enum.Enum):
    """The outcomes; every message gets one."""

    DELIVERED = "delivered"  # handed to the kernel or the buffer of at least one connection
    OFFLINE = "offline"  # the user, or the device asked for, has no connection
    EXPIRED = "expired"  # older than its TTL
    REPLACED = (
        "replaced"  # by a newer message of the same user and collapse key, before it was sent
    )
    REJECTED = "rejected"  # breaks the publishing rules; kept in the dead-letter topic
    FAILED = "failed"  # with a reason; whether the user was connected is not known


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """An outcome, one object for each: outcomes are counted by the thousand, and so by identity."""

    kind: Kind
    reason: str  # a short name, empty where the kind says everything
    name: str  # the kind's


@cache
def outcome(kind: Kind, reason: str = "") -> Outcome:
    """Return the outcome of a kind and a reason. There are few reasons, so few outcomes."""
    return Outcome(kind, reason, kind.value)


DELIVERED = outcome(Kind.DELIVERED)
OFFLINE = outcome(Kind.OFFLINE)
EXPIRED = outcome(Kind.EXPIRED)
REPLACED = outcome(Kind.REPLACED)


def outcome_of(message: Message) -> Outcome:
    """Return what became of a settled message."""
    if message.took:
        return DELIVERED
    if message.replaced:
        return REPLACED
    if message.failure is not None:
        return outcome(Kind.FAILED, message.failure)
    return EXPIRED if message.expired else OFFLINE
