"""A TCP proxy that a test puts between two parts, to go silent in one direction or to reset.

Silent as a network that loses packets is: nothing arrives, no connection ends, and what was sent
meanwhile comes late, as TCP sends it again. What waits is a chunk here and the kernels' buffers.
"""

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Final, Self

from pushgate.embedded import LOOPBACK

_CHUNK_BYTES: Final = 64 * 1024
# API keys of Kafka's requests.
_PRODUCE: Final = 0
_OFFSET_COMMIT: Final = 8


class Direction(enum.Enum):
    """The way of bytes through a proxy."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.serving: asyncio.Task[None]
        self.writers = [writer]
        self.lost = False
        self._forwarding: list[asyncio.Task[None]] = []

    async def run(self, *forwards: Coroutine[None, None, None]) -> None:
        """Forward until both ways have ended, or one is broken, or it is reset."""
        self._forwarding = [asyncio.create_task(forward) for forward in forwards]
        done, rest = await asyncio.wait(self._forwarding, return_when=asyncio.FIRST_EXCEPTION)
        for task in rest:
            task.cancel()
        await asyncio.gather(*done, *rest, return_exceptions=True)

    def reset(self) -> None:
        """End it with a RST on both sides."""
        self.lost = True
        for task in self._forwarding:
            task.cancel()
        for writer in self.writers:
            if not writer.transport.is_closing():
                plug: socket.socket = writer.get_extra_info("socket")
                # Closing with a linger time of 0 sends a RST instead of what is left.
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Forwards connections to a port on 127.0.0.1. An async context manager, in the test's loop.

    What starts through it must start in a thread, as the loop has to run meanwhile.
    """

    def __init__(
        self,
        target_port: int = 0,
        *,
        window_bytes: int = _CHUNK_BYTES,
        latency_seconds: float = 0.0,
    ) -> None:
        """`target_port` may be set later, before the first connection.

        The proxy is a path on which `window_bytes` are under way to the client at once, for
        `latency_seconds`.
        """
        self._window_bytes = window_bytes
        self._latency_seconds = latency_seconds
        self.port = 0  # known inside
        self.target_port = target_port
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self.release()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{LOOPBACK}:{self.port}"

    def silence(self, *directions: Direction) -> None:
        """Let nothing through in these directions; connections stay, and new ones are taken."""
        for direction in directions:
            self._open[direction].clear()

    def release(self) -> None:
        """Let everything through again, first what waits."""
        for opened in self._open.values():
            opened.set()

    def reset(self) -> None:
        """End every connection with a RST on both sides; what waits is lost."""
        for link in self._links:
            link.reset()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, limit=_CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        serving = [link.serving for link in self._links]
        self.reset()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        link.serving = asyncio.create_task(self._serve(link, reader, writer))
        self._links.add(link)
        link.serving.add_done_callback(lambda _: self._links.discard(link))

    async def _serve(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            plug = socket.socket()
            if self._window_bytes < _CHUNK_BYTES:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window_bytes)
            plug.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plug, (LOOPBACK, self.target_port))
            inner, outer = await asyncio.open_connection(sock=plug, limit=self._window_bytes)
            link.writers.append(outer)
            if not link.lost:
                await link.run(
                    self._forward(reader, outer, Direction.TO_SERVER),
                    self._forward(inner, writer, Direction.TO_CLIENT),
                )
        except OSError:
            pass  # nobody is there
        finally:
            for each in link.writers:
                each.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        async for chunk in self._chunks(reader, direction):
            await self._open[direction].wait()
            writer.write(chunk)
            await writer.drain()
        await self._open[direction].wait()
        with contextlib.suppress(OSError):  # gone already
            writer.write_eof()

    async def _chunks(
        self, reader: asyncio.StreamReader, direction: Direction
    ) -> AsyncIterator[bytes]:
        """Give what comes of one direction, until its end."""
        most = self._window_bytes if direction is Direction.TO_CLIENT else _CHUNK_BYTES
        while chunk := await reader.read(most):
            if self._latency_seconds:
                await asyncio.sleep(self._latency_seconds)
            yield chunk


class KafkaProxy(Proxy):
    """Stands before a broker, under whose address it gives its own, so that clients stay with it.

    It can let no offset be committed, or nothing be written: all else goes on, but for what follows
    such a request on its connection, since Kafka answers in order.
    """

    def __init__(self, bootstrap: str) -> None:
        """`bootstrap` is the broker's one address, on 127.0.0.1."""
        host, _, port = bootstrap.rpartition(":")
        assert host == LOOPBACK, f"the broker at {bootstrap} is not on this machine"
        super().__init__(int(port))
        self._held_key: int | None = None
        self._let_through = asyncio.Event()
        self.held_commits = 0

    def hold_commits(self) -> None:
        """Let no commit through from now on; `reset` ends those that wait."""
        self._hold(_OFFSET_COMMIT)

    def hold_writes(self) -> None:
        """Let no record through to a topic from now on, as a broker that does not answer."""
        self._hold(_PRODUCE)

    def let_through(self) -> None:
        """Let everything through again, first what waits."""
        self._held_key = None
        self._let_through.set()

    def _hold(self, key: int) -> None:
        self._held_key = key
        self._let_through.clear()

    async def _chunks(
        self, reader: asyncio.StreamReader, direction: Direction
    ) -> AsyncIterator[bytes]:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the end, with nothing whole left
            while True:
                head = await reader.readexactly(4)
                frame = head + await reader.readexactly(int.from_bytes(head))
                if direction is Direction.TO_CLIENT:
                    yield self._renamed(frame)
                    continue
                key = int.from_bytes(frame[4:6])
                if key == self._held_key:
                    self.held_commits += key == _OFFSET_COMMIT
                    await self._let_through.wait()
                yield frame

    def _renamed(self, frame: bytes) -> bytes:
        # A host, its length before it, and then the port in four bytes: as long with any port.
        host = LOOPBACK.encode()
        theirs = host + self.target_port.to_bytes(4)
        return frame.replace(theirs, host + self.port.to_bytes(4))
