"""Names and payloads as people and scripts read them. Others have chosen them: none is trusted."""

from __future__ import annotations

from base64 import b64encode
from typing import Final

#: Joiners, without which words of Persian and of Indic languages are spelt wrong.
_JOINERS: Final = frozenset("\u200c\u200d")


def shown(text: str) -> str:
    """Return a text without line feeds, escapes, and marks that reverse the order of a line."""
    return "".join(
        char if char.isprintable() or char in _JOINERS else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def shown_payload(payload: bytes) -> str:
    """Return a payload for a terminal, which control characters could take over."""
    text = payload.decode(errors="backslashreplace")
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text
    )


def payload_json(payload: bytes) -> dict[str, str]:
    """Return a payload in the JSON form of the protocol: as text, or in base64 if it is binary."""
    try:
        return {"data": payload.decode()}
    except UnicodeDecodeError:
        return {"data": b64encode(payload).decode(), "encoding": "base64"}
