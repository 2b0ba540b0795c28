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
from registry.redis_store import RedisRegistry

_HEARTBEAT_SECONDS: Final = 2.0
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Counter:
    """The number of messages received, by all endpoints together."""

    def __init__(self) -> None:
        self.messages = 0


class Endpoint(asyncio.Protocol):
    """One HTTP connection: requests with a Content-Length or without a body, one at a time."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._transport: asyncio.Transport | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer the request once it is complete."""
        assert self._transport is not None
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self._read = b""
        answer = self._answer(body) if length else b"%d" % self._counter.messages
        self._transport.write(_HEAD % len(answer) + answer)

    def _answer(self, batch: bytes) -> bytes:
        """Return `{"results": [1, …]}` for a MessagePack array."""
        wide = batch[0] == 0xDC
        count = int.from_bytes(batch[1:3], "big") if wide else batch[0] & 0x0F
        self._counter.messages += count
        return b"\x81\xa7results\xdc" + count.to_bytes(2, "big") + b"\x01" * count


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
