"""A layer-4 balancer that a test directs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pushgate.embedded import LOOPBACK


class Balancer:
    """Forwards each TCP connection to the port that is its target when it comes; None refuses."""

    def __init__(self, target: int | None) -> None:
        self.target = target
        self.discards = False
        """Whether what gateways send is lost on the way, as in a network that has gone."""
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client's connection."""
        self._tasks.add(asyncio.create_task(self._forward(reader, writer)))

    async def cut(self) -> None:
        """End all connections, without a goodbye."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is None:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection(LOOPBACK, self.target)
        await asyncio.gather(
            _copy(reader, there_writer), _copy(there_reader, writer, lambda: self.discards)
        )


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    discards: Callable[[], bool] = lambda: False,
) -> None:
    try:
        while data := await reader.read(65_536):
            if not discards():
                writer.write(data)
                await writer.drain()
    except OSError:
        pass  # either side may cut it
    finally:
        writer.close()


@asynccontextmanager
async def balancer_to(target: int) -> AsyncIterator[Balancer]:
    """Listen on a port of its own."""
    balancer = Balancer(target)
    server = await asyncio.start_server(balancer.accept, LOOPBACK, 0)
    balancer.port = server.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        server.close()
        await balancer.cut()
