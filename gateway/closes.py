"""Why a connection is closed, and what its client does next: the one table.

Codes are those of RFC 6455 §7.4.1. docs/protocol.md carries the same table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Next(enum.Enum):
    """What the client does next."""

    RECONNECT_LATER = "reconnect after a delay of its own, with jitter"


@dataclass(frozen=True, slots=True)
class Close:
    """A close as a value."""

    code: int
    reason: str
    next: Next


GOING_AWAY = Close(1001, "node is leaving", Next.RECONNECT_LATER)
"""The node shuts down or drains."""

CLOSES = (GOING_AWAY,)
