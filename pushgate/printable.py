"""Texts and payloads of publishers, clients and servers, made fit for a terminal or a script."""

from __future__ import annotations

from base64 import b64encode
from typing import Final

#: Joiners, without which words of Persian and of Indic languages are spelt wrong.
_JOINERS: Final = frozenset("\u200c\u200d")


def printable(text: str, *, most: int | None = None) -> str:
    """Return a text as one line, cut behind `most` characters; None is without a limit.

    Names are the choice of a publisher or a client: no line feed, no escape, and no mark that
    reverses the order of a line reaches the terminal.
    """
    cut = text if most is None or len(text) <= most else f"{text[:most]}…"
    return "".join(
        char if char.isprintable() or char in _JOINERS else "\N{REPLACEMENT CHARACTER}"
        for char in cut
    )


def printable_payload(payload: bytes) -> str:
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
