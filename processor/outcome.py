"""What became of a message."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """The outcomes there are; every message gets one."""

    DELIVERED = "delivered"  # handed to the kernel or the buffer of at least one connection
    OFFLINE = "offline"  # the user, or the device asked for, has no connection
    EXPIRED = "expired"  # older than its TTL
    REPLACED = "replaced"  # by a newer one of the same user and collapse key, before it was sent
    REJECTED = "rejected"  # breaks the publishing rules; kept in the dead-letter topic
    FAILED = "failed"  # with a reason; nobody knows whether the user was there


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome; `reason` is a short name, empty where the kind says it all."""

    kind: Kind
    reason: str = ""


DELIVERED = Outcome(Kind.DELIVERED)
OFFLINE = Outcome(Kind.OFFLINE)
EXPIRED = Outcome(Kind.EXPIRED)
REPLACED = Outcome(Kind.REPLACED)
