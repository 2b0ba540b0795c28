"""Heads of the HTTP responses that are written past ASGI. No other file spells out a head.

A head is a status line (RFC 9112 §4) and field lines (§5), all ended by CRLF, and an empty line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Final

#: The empty line that ends a head, behind the last field line.
END_HEAD: Final = b"\r\n"
#: The field line that announces the last response on a connection (RFC 9112 §9.6).
CLOSE_LINE: Final = b"connection: close\r\n"

_ANSWER: Final = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
_CONTENT_LENGTH: Final = b"content-length: %d\r\n"


def start_head(status: int, fields: Mapping[str, str]) -> bytes:
    """Return a status line with field lines. More field lines may follow; `END_HEAD` must follow.

    The heads of all held connections of a transport begin alike, so a transport calls this function
    once and keeps the result.
    """
    status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
    return status_line.encode("ascii") + field_lines(fields)


def field_lines(fields: Mapping[str, str]) -> bytes:
    """Return header fields as lines of a head; names and values are ASCII."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("ascii")


def with_body(head: bytes, body: bytes) -> bytes:
    """Return a whole response: a started head, the body's length, and the body."""
    return b"".join((head, _CONTENT_LENGTH % len(body), END_HEAD, body))


@cache
def _status_line(status: int) -> bytes:
    return start_head(status, {})


def answer(status: int, content_type: bytes, body: bytes, *, last: bool) -> bytes:
    """Return a whole response; `last` announces that the connection closes afterwards."""
    close_line = CLOSE_LINE if last else b""
    return _ANSWER % (_status_line(status), content_type, len(body), close_line, body)


def refusal(status: int, text: str) -> bytes:
    """Return a whole response with one line of text, after which the connection closes."""
    body = text.encode("ascii") + b"\n"
    head = start_head(status, {"content-type": "text/plain; charset=utf-8"})
    return with_body(head + CLOSE_LINE, body)
