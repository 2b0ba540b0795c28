"""What became of a message."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache


class Kind(enum.Enum):
    """The outcomes there are; every message gets one."""

    DELIVERED = "delivered"  # handed to the kernel or the buffer of at least one connection
    OFFLINE = "offline"  # the user, or the device asked for, has no connection
    EXPIRED = "expired"  # older than its TTL
    REPLACED = "replaced"  # by a newer one of the same user and collapse key, before it was sent
    REJECTED = "rejected"  # breaks the publishing rules; kept in the dead-letter topic
    FAILED = "failed"  # with a reason; nobody knows whether the user was there


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """An outcome, one object for each: they are counted by the thousand, and so by identity."""

    kind: Kind
    reason: str  # a short name, empty where the kind says it all
    name: str  # the kind's


@cache
def outcome(kind: Kind, reason: str = "") -> Outcome:
    """Return an outcome. There are as many as there are reasons, which are few."""
    return Outcome(kind, reason, kind.value)


DELIVERED = outcome(Kind.DELIVERED)
OFFLINE = outcome(Kind.OFFLINE)
EXPIRED = outcome(Kind.EXPIRED)
REPLACED = outcome(Kind.REPLACED)
