"""The table of closes: the reasons why a connection ends, and the client's next step.

Codes below 4000 are defined in RFC 6455 §7.4.1; codes from 4000 on are in the range that §7.4.2
leaves to applications. docs/protocol.md and pushgate.js have copies of the table; a test compares
the copies with this file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: How long, in seconds, a client may take to read a goodbye and to answer a Close frame (Zuul's
#: close grace).
CLOSE_GRACE_SECONDS: Final = 4.0


class Next(enum.Enum):
    """The client's next step after a close."""

    NOW = "reconnect now"
    LATER = "reconnect after a delay"
    NEW_TOKEN = "reconnect with a new token"  # noqa: S105 - no password
    NEVER = "stay away"


@dataclass(frozen=True, slots=True)
class Close:
    """A close as a value: code and reason of the Close frame, and the client's next step."""

    code: int
    reason: str
    next: Next


GOING_AWAY = Close(1001, "node is leaving", Next.LATER)
"""The node drains or shuts down."""
PROTOCOL_ERROR = Close(1002, "protocol error", Next.LATER)
"""The client breaks RFC 6455."""
BAD_TEXT = Close(1007, "text is not UTF-8", Next.LATER)
"""A text message or a close reason from the client is not UTF-8."""
TOO_MANY_FRAMES = Close(1008, "too many frames", Next.LATER)
"""The client sends more frames than `Bounds.inbound_frames`."""
TOO_BIG = Close(1009, "message too big", Next.LATER)
"""A message from the client is larger than `Bounds.inbound_bytes`."""
TOO_OLD = Close(4000, "maximum age reached", Next.NOW)
"""The connection has reached its maximum age: the next connection may land on another node."""
TOO_SLOW = Close(4001, "too slow: reconnect and resume", Next.NOW)
"""The client has not read for `Bounds.heartbeat_timeout_seconds`, while messages waited for it."""
TOKEN_EXPIRED = Close(4002, "token expired", Next.NEW_TOKEN)
"""The token of the connection, or the last token that refreshed the connection, has expired."""
DISCONNECTED = Close(4003, "disconnected", Next.NEVER)
"""An operator, or the application behind, has ended the connection (DELETE /connections)."""

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
#: The closes by their reasons.
BY_REASON: Final = {close.reason: close for close in CLOSES}
