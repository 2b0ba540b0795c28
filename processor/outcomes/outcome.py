"""The outcome of a message: its kind, and a reason where the kind needs a reason."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache

from processor.reading.message import Message


class Kind(enum.Enum):
    """The kinds of outcomes; every message gets one outcome."""

    DELIVERED = "delivered"  # handed to the kernel or the buffer of at least one connection
    OFFLINE = "offline"  # the user, or the device asked for, has no connection
    EXPIRED = "expired"  # older than its TTL
    REPLACED = "replaced"  # by a newer message of the same user, device and collapse key
    REJECTED = "rejected"  # breaks the publishing rules; kept in the dead-letter topic
    FAILED = "failed"  # with a reason; whether the user was connected is not known


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """An outcome. Equal outcomes are one object, made by `outcome`.

    Outcomes are counted by the thousand, and hashing by identity is fast.
    """

    kind: Kind
    reason: str  # a short name, empty where the kind says everything
    name: str  # the kind's value, as in metrics and reports


@cache
def outcome(kind: Kind, reason: str = "") -> Outcome:
    """Return the outcome of a kind and a reason. There are few reasons, so the cache is small."""
    return Outcome(kind, reason, kind.value)


DELIVERED = outcome(Kind.DELIVERED)
OFFLINE = outcome(Kind.OFFLINE)
EXPIRED = outcome(Kind.EXPIRED)
REPLACED = outcome(Kind.REPLACED)


def outcome_of(message: Message) -> Outcome:
    """Return the outcome of a settled message.

    Delivered comes first: a single connection that took the message is enough, whatever a second
    node answered. Failed comes next: a node that failed may have delivered the message, so a newer
    message has not replaced it for certain. Offline comes last: no node failed, and no node had the
    user (or the device).
    """
    if message.took:
        return DELIVERED
    if message.failure is not None:
        return outcome(Kind.FAILED, message.failure)
    if message.replaced:
        return REPLACED
    return EXPIRED if message.expired else OFFLINE
