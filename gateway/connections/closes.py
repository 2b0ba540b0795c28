"""Why a connection is closed, and what its client does next: the one table.

Codes below 4000 are those of RFC 6455 §7.4.1, the others its range for applications (§7.4.2).
docs/protocol.md and pushgate.js carry the same table; a test compares them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: How long a client may take to read a goodbye and to answer a Close frame (Zuul's close grace).
CLOSE_GRACE_SECONDS: Final = 4.0


class Next(enum.Enum):
    """What the client does next."""

    NOW = "reconnect now"
    LATER = "reconnect after a delay"
    NEW_TOKEN = "reconnect with a new token"  # noqa: S105 - no password
    NEVER = "stay away"


@dataclass(frozen=True, slots=True)
class Close:
    """A close as a value."""

    code: int
    reason: str
    next: Next


GOING_AWAY = Close(1001, "node is leaving", Next.LATER)
"""The node drains or shuts down."""
PROTOCOL_ERROR = Close(1002, "protocol error", Next.LATER)
"""The client breaks RFC 6455."""
BAD_TEXT = Close(1007, "text is not UTF-8", Next.LATER)
"""A text message or a close reason of the client is not UTF-8."""
TOO_MANY_FRAMES = Close(1008, "too many frames", Next.LATER)
"""The client sends more frames than it may."""
TOO_BIG = Close(1009, "message too big", Next.LATER)
"""A message of the client is larger than it may be."""
TOO_OLD = Close(4000, "maximum age reached", Next.NOW)
"""The connection has lived its time: the next one may land on another node."""
TOO_SLOW = Close(4001, "too slow: reconnect and resume", Next.NOW)
"""The client has not read what was sent, and its buffer is full: it has missed messages."""
TOKEN_EXPIRED = Close(4002, "token expired", Next.NEW_TOKEN)
"""The token with which it connected, or the last that refreshed it, is good no longer."""
DISCONNECTED = Close(4003, "disconnected", Next.NEVER)
"""An operator, or the application behind, has ended it (DELETE /connections)."""

CLOSES = (
    GOING_AWAY,
    PROTOCOL_ERROR,
    BAD_TEXT,
    TOO_MANY_FRAMES,
    TOO_BIG,
    TOO_OLD,
    TOO_SLOW,
    TOKEN_EXPIRED,
    DISCONNECTED,
)
