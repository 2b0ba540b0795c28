"""Gateways that only count, in one process: they cost next to nothing beside a processor.

Every counting gateway is a registered node with a share of the users. A counting gateway answers
every batch as if every message had reached a single connection. `GET /count` returns how many
messages all counting gateways have received.

    python -m loadtest.counting --redis URL --nodes 3 --users 10000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from typing import Final, cast

import uvloop

from registry.directory import Node
from registry.frames import FrameReader, frame_head
from registry.message import MAX_BATCH_BYTES
from registry.redis_store import RedisRegistry

_HEARTBEAT_SECONDS: Final = 2.0
_COUNT: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: pushgate-batch\r\n\r\n"
)


class Counter:
    """The number of messages received, by all endpoints together."""

    def __init__(self) -> None:
        self.messages = 0


class Endpoint(asyncio.Protocol):
    """One connection: a link of a processor, or requests for the count, one at a time."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._frames: FrameReader | None = None  # of a link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer batches, or the request once it is complete."""
        assert self._transport is not None
        if self._frames is not None:
            self._answer(self._frames, data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = b""
        if b"upgrade: pushgate-batch" in head.lower():
            self._frames = FrameReader(most_bytes=MAX_BATCH_BYTES)
            self._transport.write(_SWITCHING)
            self._answer(self._frames, rest)
        else:
            count = b"%d" % self._counter.messages
            self._transport.write(_COUNT % (len(count), count))

    def _answer(self, frames: FrameReader, data: bytes) -> None:
        """Answer MessagePack arrays with `{"results": [1, …]}`."""
        assert self._transport is not None
        frames.feed(data)
        while (frame := frames.next()) is not None:
            batch = frame.body
            wide = batch[0] == 0xDC
            count = int.from_bytes(batch[1:3], "big") if wide else batch[0] & 0x0F
            self._counter.messages += count
            body = b"\x81\xa7results\xdc" + count.to_bytes(2, "big") + b"\x01" * count
            self._transport.write(frame_head(frame.number, len(body)) + body)


async def _serve(arguments: argparse.Namespace) -> None:
    counter, registry = Counter(), RedisRegistry(arguments.redis)
    loop = asyncio.get_running_loop()
    nodes = []
    for number in range(arguments.nodes):
        server = await loop.create_server(lambda: Endpoint(counter), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        nodes.append(Node(f"counting-{number}", "e1", f"127.0.0.1:{port}"))
        await registry.heartbeat(nodes[-1], claim=True)
        users = [f"user-{user}" for user in range(number, arguments.users, arguments.nodes)]
        for start in range(0, len(users), 500):
            await registry.write(nodes[-1], users[start : start + 500], [])
    print(nodes[0].address, flush=True)
    for node in itertools.cycle(nodes):
        await asyncio.sleep(_HEARTBEAT_SECONDS / len(nodes))
        await registry.heartbeat(node)


def main() -> None:
    """Serve until killed; print one node's address once every user is registered."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.counting")
    parser.add_argument("--redis", required=True, help="URL")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--users", type=int, required=True)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
