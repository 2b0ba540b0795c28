"""A gateway by hand: takes links as a node does, and answers batches as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from registry.directory import Node
from registry.frames import FrameReader, frame_head
from registry.message import MAX_BATCH_BYTES, Push

SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: pushgate-batch\r\n\r\n"
)


class Request:
    """A batch, and the head of the request that its link began with."""

    def __init__(self, head: bytes, body: bytes) -> None:
        request_line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = request_line.split(" ")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self.body = body
        self.pushes = msgspec.msgpack.decode(body, type=list[Push])


#: Returns the body of the answer to a batch. A ConnectionError ends the link.
Answer = Callable[[Request], Awaitable[bytes]]


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Spell a response of HTTP."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def frame(number: int, body: bytes) -> bytes:
    """Spell a frame."""
    return frame_head(number, len(body)) + body


def results(*found: object) -> bytes:
    """Spell the body of an answer."""
    return msgspec.msgpack.encode({"results": list(found)})


async def take_all(request: Request) -> bytes:
    """Answer as if one connection had taken every message."""
    return results(*[1] * len(request.pushes))


class LinkServer:
    """Answers every upgrade with `upgrade`, and every batch by `answer`; remembers what came."""

    def __init__(self, answer: Answer = take_all, *, upgrade: bytes = SWITCHING) -> None:
        self.answer = answer
        self.upgrade = upgrade
        self.requests: list[Request] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self.node = Node("gw-a", "e1", "127.0.0.1:1")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        self.heads.append(head)
        writer.write(self.upgrade)
        if self.upgrade.startswith(SWITCHING):
            await self._serve_link(head, reader, writer)

    async def _serve_link(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        frames = FrameReader(most_bytes=MAX_BATCH_BYTES)
        while data := await reader.read(65_536):
            frames.feed(data)
            while (batch := frames.next()) is not None:
                request = Request(head, batch.body)
                self.requests.append(request)
                writer.write(frame(batch.number, await self.answer(request)))
                await writer.drain()


@asynccontextmanager
async def link_server(
    answer: Answer = take_all, *, upgrade: bytes = SWITCHING, host: str = "127.0.0.1"
) -> AsyncIterator[LinkServer]:
    """Give a server of links that listens; its connections end with it."""
    made = LinkServer(answer, upgrade=upgrade)
    async with listening(made.serve, host=host) as node:
        made.node = node
        yield made


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    host: str = "127.0.0.1",
) -> AsyncIterator[Node]:
    """Give a node at whose address `serve` has every connection, until the connection ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(run(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, host, 0)
    try:
        yield Node("gw-a", "e1", f"{host}:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
