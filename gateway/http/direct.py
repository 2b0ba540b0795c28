"""Requests that are answered without ASGI: small ones, whose answer needs no wait.

For such a request ASGI costs more than all the rest: a task, a cycle of messages, a timer. The
listener asks a Direct about each head; the requests that the Direct does not take go the way of
all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

#: Takes the body of a request; returns status, content type and body of the answer. Raises nothing.
Respond = Callable[[bytes], tuple[int, bytes, bytes]]


class Direct(Protocol):
    """The requests of one listener that are answered without ASGI."""

    def __call__(self, path: bytes, fields: Mapping[bytes, bytes]) -> Respond | None:
        """Return what answers a POST, by its raw path and its fields; None to leave it to ASGI.

        The length of the body is in the fields: a larger body than is taken is left to ASGI.
        """
