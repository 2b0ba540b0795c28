"""Texts of publishers, clients and servers, made fit for a terminal."""

from __future__ import annotations


def printable(text: str, *, most: int) -> str:
    """Return a text of one line, cut behind `most` characters.

    Names are the choice of a publisher or a client: no line feed or escape reaches the terminal.
    """
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(character if character.isprintable() else "�" for character in cut)
