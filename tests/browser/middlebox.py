"""A proxy on the way that takes upgrades away, or keeps answers until they have ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pushgate.embedded import LOOPBACK

END_OF_HEAD: Final = b"\r\n\r\n"
#: The paths whose answers have no end.
ENDLESS: Final = (b"GET /ws", b"GET /sse")


class Middlebox:
    """Forwards connections to a gateway; a test says what it does to them."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.blocks_upgrades = False
        """Whether requests arrive without their Upgrade field."""
        self.buffers = False
        """Whether of an answer that does not end only the head passes."""
        self.upgrades = 0
        """How many WebSocket handshakes have come."""
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client's connection."""
        self._tasks.add(asyncio.create_task(self._forward(reader, writer)))

    async def cut(self) -> None:
        """End all connections."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(LOOPBACK, self._target)
        is_endless = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65_536):
                if b"\r\nUpgrade: websocket" in data:
                    self.upgrades += 1
                    if self.blocks_upgrades:
                        data = data.replace(b"\r\nUpgrade:", b"\r\nX-Upgrade:")
                if self.buffers and data.startswith(ENDLESS):
                    is_endless.set()
                there_writer.write(data)

        async def answers() -> None:
            while data := await there_reader.read(65_536):
                if is_endless.is_set():
                    writer.write(data[: data.index(END_OF_HEAD) + len(END_OF_HEAD)])
                    while await there_reader.read(65_536):
                        pass  # kept until the end of the answer, which never comes
                    return
                writer.write(data)

        both = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            writer.close()
            there_writer.close()


@asynccontextmanager
async def middlebox_to(target: int) -> AsyncIterator[Middlebox]:
    """Listen on a port of its own."""
    middlebox = Middlebox(target)
    server = await asyncio.start_server(middlebox.accept, LOOPBACK, 0)
    middlebox.port = server.sockets[0].getsockname()[1]
    try:
        yield middlebox
    finally:
        server.close()
        await middlebox.cut()
