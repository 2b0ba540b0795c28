"""A fourth transport is one file, and one line in the table: this file is such a one.

Lines of JSON over a held GET (as application/x-ndjson), on a real gateway with a real registry.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar, Final

import httpx
import pytest
from starlette.types import ASGIApp

from gateway.connections.closes import CLOSE_GRACE_SECONDS, Close
from gateway.connections.connection import StreamConnection
from gateway.connections.delivery import Delivery, json_form
from gateway.entry.entry import Entry
from gateway.http.head import Head
from gateway.http.responses import END_HEAD, start_head
from gateway.server import Gateway
from gateway.settings import GatewaySettings
from gateway.wires.choice import Choice
from pushgate.embedded import LOOPBACK
from tests.support.clients import bearer, pusher_to
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

pytestmark = pytest.mark.anyio

_HEAD: Final = start_head(
    200,
    {"content-type": "application/x-ndjson", "connection": "close", "cache-control": "no-store"},
)


async def connect(head: Head, entry: Entry) -> ASGIApp:
    """Answer `GET /lines`."""
    admitted = await entry.admit(head)
    connection = LinesConnection(admitted.identity, entry.node)
    return entry.hold(connection, admitted, _HEAD + admitted.cors_lines + END_HEAD)


def line(delivery: Delivery) -> bytes:
    """One message as a line: JSON has no newline of its own."""
    return delivery.encoded(json_form) + b"\n"


class LinesConnection(StreamConnection):
    """A response of lines that does not end."""

    __slots__ = ()
    transport: ClassVar[str] = "lines"
    form = staticmethod(line)

    def received(self, data: bytes) -> None:
        """Ignore what follows the request."""

    def opened(self) -> None:
        """Start the heartbeat."""
        self._keeper.wake_at(self, self._keeper.bounds.heartbeat_seconds)

    def wake(self) -> None:
        """Send an empty line."""
        if self.write(b"\n"):
            self._keeper.wake_at(self, self._keeper.bounds.heartbeat_seconds)

    def understands_reconnect(self) -> bool:
        """Clients know nothing but messages."""
        return False

    def gap_notice(self) -> bytes:
        """Say nothing of a gap."""
        return b""

    def say_goodbye(self, close: Close) -> None:
        """End the response."""
        if self.wire is not None:
            self.wire.close()
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)


@pytest.mark.parametrize("wire", ["epoll", "transport"])
async def test_a_transport_of_a_file_and_a_line_gets_messages_and_leaves_with_the_node(
    redis_url: str, wire: Choice
) -> None:
    given: dict[str, Any] = {
        "host": LOOPBACK,
        "port": 0,
        "internal_port": 0,
        "redis_url": redis_url,
        "jwt_secret": JWT_SECRET,
        "internal_secret": INTERNAL_SECRET,
        "drain_seconds": 0,
        "heartbeat_seconds": 0.2,
        "wire": wire,
    }
    gateway = Gateway(GatewaySettings(**given), extra_transports={"/lines": connect})
    user = f"lines-{wire}"
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.run())
        await gateway.started()
        url = f"http://{LOOPBACK}:{gateway.port}/lines"
        async with httpx.AsyncClient(trust_env=False) as client:
            refused = await client.get(url)
            assert refused.status_code == 401
            async with (
                client.stream("GET", url, headers=bearer(user)) as response,
                pusher_to(gateway.internal_port) as pusher,
            ):
                assert response.headers["content-type"] == "application/x-ndjson"
                assert await pusher.push([{"user": user, "data": "one\ntwo"}]) == [1]
                lines = response.aiter_lines()
                while not (text := await anext(lines)):
                    pass  # a heartbeat
                assert json.loads(text)["data"] == "one\ntwo"
                assert await anext(lines) == ""
                gateway.stop()
                assert [text async for text in lines if text] == []
