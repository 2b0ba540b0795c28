"""Requests in a row on one connection, of which the last one takes the socket out of HTTP."""

from typing import Final

import pytest

from tests.support.clients import (
    Client,
    Pusher,
    SseClient,
    WebSocketClient,
    bearer,
    head,
    request,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

EARLIER: Final = 12
"""Requests whose answers together are more than the kernel takes for a client that does not read,
and less than what HTTP lets wait."""


@pytest.mark.parametrize("path", ["/ws", "/sse", "/poll?wait=0.2"])
async def test_a_connection_behind_unread_answers_drops_none_of_them(
    gateway: GatewayProcess, pusher: Pusher, user: str, path: str
) -> None:
    script = (await request(gateway.port, "GET", "/pushgate.js")).body
    fields = {**(upgrade_headers() if path == "/ws" else {}), **bearer(user)}
    async with wire_to(gateway.port, receive_buffer_bytes=4_096) as wire:
        await wire.send(head("GET", "/pushgate.js") * EARLIER + head("GET", path, fields))
        for _ in range(3):  # by the last answer, the gateway has come as far as it can
            await request(gateway.port, "GET", "/healthz")
        for _ in range(EARLIER):
            assert (await wire.answer()).body == script
        if path.startswith("/poll"):
            assert (await wire.answer()).json["messages"] == []
            return
        answer = await wire.answer(bodiless=True)
        assert answer.status == (101 if path == "/ws" else 200)
        client: Client = (WebSocketClient if path == "/ws" else SseClient)(wire, answer)
        await pusher.push_one(user, b"behind them")
        assert (await client.message()).payload == b"behind them"
