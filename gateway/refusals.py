"""Refused requests: counted by reason, on both ports.

A reason is the beginning of the text that the client gets, as docs/troubleshooting.md has it, so it
never has a byte of a client's.
"""

from __future__ import annotations

from typing import Final, Literal

import structlog

from gateway import metrics

Port = Literal["public", "internal"]

#: Stands for a text without a beginning in REASONS: of a route that somebody has added.
OTHER: Final = "other"
REASONS: Final = (
    "this is no HTTP request",
    "the request needs one Host field",
    "the Host field is no host",
    "the request has more than one Authorization field",
    "too many requests at once",
    "the head of the request is too large",
    "the request has too many header fields",
    "HTTP/1.1 is spoken here",
    "Not Found",
    "Method Not Allowed",
    "GET is what connects",
    "no body is taken here",
    "no upgrade to WebSocket has arrived",
    "WebSocket version 13 is spoken here",
    "Sec-WebSocket-Key is not 16 bytes in base64",
    "wait is",
    "this origin is not allowed",
    "no token",
    "the cookie does not count here",
    "token refused",
    "token refused: expired",
    "token refused: not valid yet",
    "token refused: not a JWT",
    "token refused: signed with another key",
    "token refused: its key is not known",
    "token refused: its algorithm is not accepted here",
    "not taking connections now",
    "full",
    "short of memory",
    "too many connections from this address",
    "too many connections of this user",
    "too many new connections",
    "overloaded",
    # Of the internal port alone.
    "send the internal secret",
    "neither the internal secret nor a proof",
    "this is node",
    "this is for a",
    "this node has left",
    "a user id is",
    "the user in the path is not UTF-8",
    "code is one of",
    "the body is no list of messages",
    "at most",
    "too many",
)
#: The most specific beginning decides.
_LONGEST_FIRST: Final = tuple(sorted(REASONS, key=len, reverse=True))

log = structlog.get_logger("gateway.refusals")


def reason_of(text: str) -> str:
    """Return the reason in the text of a refusal."""
    return next((reason for reason in _LONGEST_FIRST if text.startswith(reason)), OTHER)


def count(port: Port, status: int, text: str) -> None:
    """Count a request that is refused with a status and a text."""
    reason = reason_of(text)
    metrics.REFUSED.labels(port, str(status), reason).inc()
    log.debug("request is refused", port=port, status=status, reason=reason)


def count_cut_off(port: Port, reason: str, sockets: int = 1) -> None:
    """Count sockets that are closed without an answer; `reason` is a fixed text."""
    metrics.CUT_OFF.labels(port, reason).inc(sockets)
