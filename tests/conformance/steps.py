"""What several of these tests do and see."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pushgate.embedded import LOOPBACK
from registry.redis_store import RedisRegistry
from tests.support.clients import (
    Answer,
    Client,
    PollClient,
    Pusher,
    WebSocketClient,
    Wire,
    bearer,
    close_frame,
    eventually,
    open_sse,
    open_websocket,
)


async def is_registered(registry: RedisRegistry, user: str) -> bool:
    """Tell whether a look-up finds the user somewhere."""
    await registry.refresh()
    (nodes,) = await registry.lookup([user])
    return bool(nodes)


async def until_gone(registry: RedisRegistry, user: str) -> None:
    """Return once no look-up finds the user any more."""

    async def gone() -> bool:
        return not await is_registered(registry, user)

    await eventually(gone, f"no entry of {user} is left")


async def metric(pusher: Pusher, sample: str) -> float:
    """Give the value of a sample, named as in the exposition; 0 where it is not there."""
    lines = (await pusher.http.get("/metrics")).text.splitlines()
    values = [line.removeprefix(f"{sample} ") for line in lines if line.startswith(f"{sample} ")]
    return sum(map(float, values))


async def leave(client: WebSocketClient) -> None:
    """Close first, as a client does whose next connection stands; the gateway answers."""
    await client.wire.send(close_frame(1000))
    ended = await client.ended()
    assert ended.code == 1000, ended


@asynccontextmanager
async def tls_to(port: int, trust: ssl.SSLContext) -> AsyncIterator[Wire]:
    """Connect over TLS, and close whatever happens."""
    wire = Wire(*await asyncio.open_connection(LOOPBACK, port, ssl=trust, limit=1 << 24))
    try:
        yield wire
    finally:
        await wire.close()


async def open_on(wire: Wire, transport: str, user: str) -> Client:
    """Connect as `user` over a TCP or TLS connection, by a transport or a subprotocol."""
    if transport == "sse":
        return await open_sse(wire, bearer(user))
    if transport == "poll":
        return await PollClient(wire, Answer("", 0, {}), bearer(user)).open()
    return await open_websocket(wire, bearer(user), subprotocol=transport)
