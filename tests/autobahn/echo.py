"""A real public listener with one more transport, `/echo`: a WebSocket that says all again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pydantic import SecretStr
from starlette.types import ASGIApp
from websockets.frames import Frame, Opcode

from gateway.connections.identity import Identity
from gateway.entry.entry import Admitted, Entry
from gateway.http.head import Head
from gateway.server import Gateway
from gateway.settings import GatewaySettings
from gateway.transports.websocket import WebSocketConnection, answer_handshake
from gateway.wires.choice import Choice
from pushgate.embedded import LOOPBACK
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

#: More than the largest message of the cases, which is 16 MiB.
_ROOM_BYTES: Final = 64 * 1024 * 1024
#: More than a client can send.
_NO_RATE: Final = 1e9


class EchoConnection(WebSocketConnection):
    """A WebSocket that sends back what its client says."""

    __slots__ = ()

    def said(self, message: str | bytes) -> None:
        """Send the message back as one frame of its kind."""
        if isinstance(message, str):
            frame = Frame(Opcode.TEXT, message.encode())
        else:
            frame = Frame(Opcode.BINARY, message)
        self.write(frame.serialize(mask=False))


async def connect(head: Head, entry: Entry) -> ASGIApp:
    """Hold a WebSocket of anybody's."""
    answer, _ = answer_handshake(head.fields, ())
    identity = Identity("echo", None, int(time.time()) + 3_600)
    connection = EchoConnection(identity, entry.node, subprotocol=None)
    return entry.hold(connection, Admitted(identity, {}, LOOPBACK, 0.0), answer)


@asynccontextmanager
async def echoing(wire: Choice, *, redis_url: str) -> AsyncIterator[str]:
    """Run a gateway, in this loop, whose limits no case reaches; give the URL of its echo."""
    settings = GatewaySettings(
        host=LOOPBACK,
        port=0,
        internal_port=0,
        redis_url=redis_url,
        jwt_secret=SecretStr(JWT_SECRET),
        internal_secret=SecretStr(INTERNAL_SECRET),
        wire=wire,
        inbound_bytes=_ROOM_BYTES,
        inbound_frames_per_second=_NO_RATE,
        send_buffer_bytes=_ROOM_BYTES,
        # A small one holds one segment of the loopback's, and each waits for a delayed ACK: 40 ms.
        kernel_buffer_bytes=0,
        drain_seconds=0,
    )
    gateway = Gateway(settings, extra_transports={"/echo": connect})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.run())
        await gateway.started()
        try:
            yield f"ws://{LOOPBACK}:{gateway.port}/echo"
        finally:
            gateway.stop()
