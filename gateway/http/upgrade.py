"""An upgrade (RFC 9110 §7.8) on the internal port: a request's socket becomes a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import Scope

from gateway.http.detach import Detached, exchange_of
from gateway.http.head import Head, asks_for
from gateway.http.responses import END_HEAD, start_head


async def take_upgrade(
    scope: Scope, protocol: str, *, has_left: Callable[[], bool]
) -> Detached | None:
    """Take the socket of a request for an upgrade to `protocol` out of HTTP; None where it is gone.

    `has_left` says whether the node has said goodbye.

    Raises:
        HTTPException: 426 where the request asks for no such upgrade, 413 for a request with a
            body, 503 after the goodbye.
    """
    head = Head(scope)
    if not asks_for(head.fields, protocol):
        raise HTTPException(426, f"this is for a {protocol}", _fields(protocol))
    if head.has_body:
        raise HTTPException(413, "no body is taken here")
    exchange = exchange_of(scope)
    await exchange.flush()
    if has_left():
        raise HTTPException(503, "this node has left")
    return exchange.detach()


def switch(transport: asyncio.Transport, link: asyncio.Protocol, protocol: str) -> None:
    """Make `link` the protocol of a detached transport, and answer 101; reading is paused."""
    transport.pause_reading()
    transport.set_protocol(link)
    transport.write(start_head(101, _fields(protocol)) + END_HEAD)


def _fields(protocol: str) -> dict[str, str]:
    return {"Connection": "Upgrade", "Upgrade": protocol}
