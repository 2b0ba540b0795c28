"""The cursor of a poll: which session has answered, up to which count, and a resume cursor.

`<key>.<session>.<count>`, and where clients resume `,<as-of>[,<position>…]` behind
(connections/cursor.py). The key is the client's: a client keeps its key on every node, and has one
session for it on each. The session is the one that gave the answer, and its count says how far the
client has come there. A session of another node goes by the resume cursor.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from gateway.connections.cursor import MAX_CURSOR_BYTES

#: Key, session and count in front of the resume cursor.
_SESSION: Final = re.compile(
    r"([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]{1,24})\.([0-9]{1,18})", re.ASCII
)
_MAX_SESSION_BYTES: Final = 76
#: The longest cursor of a poll, in bytes.
MAX_POLL_CURSOR_BYTES: Final = _MAX_SESSION_BYTES + MAX_CURSOR_BYTES


@dataclass(frozen=True, slots=True)
class PollCursor:
    """A cursor that a client polls with; `resume` is empty where clients don't resume."""

    key: str
    session: str
    count: int
    resume: str


def read_poll_cursor(text: str) -> PollCursor | None:
    """Return the cursor in a client's text; None for a text that no gateway has written."""
    if len(text) > MAX_POLL_CURSOR_BYTES:
        return None
    session, _, resume = text.partition(",")
    parts = _SESSION.fullmatch(session)
    return parts and PollCursor(parts[1], parts[2], int(parts[3]), resume)


def new_key() -> str:
    """Draw a client's key: 72 random bits."""
    return secrets.token_urlsafe(9)


def new_names() -> str:
    """Draw the beginning of the names of a node's sessions: 48 random bits."""
    return secrets.token_urlsafe(6)
