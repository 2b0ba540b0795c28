"""The embedded broker's port, in front of librdkafka's mock cluster.

Clients know the broker by this port alone: where the mock cluster names its own port, the proxy
puts in this port. So all requests come by here, and the proxy makes good what the mock cluster
lacks: a controller, offsets by time, and transactions (transactions.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import struct
from collections.abc import Iterator
from functools import partial
from typing import Final

from pushgate.embedded import LOOPBACK
from pushgate.embedded.kafka_wire import (
    FIND_COORDINATOR,
    INT32,
    INT64,
    LIST_OFFSETS,
    METADATA,
    Head,
    Reader,
)
from pushgate.embedded.transactions import Change, Transactions

#: The largest request or answer: Kafka's default of socket.request.max.bytes.
_MAX_FRAME_BYTES: Final = 100 * 1024 * 1024
#: The timestamp that stands for a partition's earliest offset (Kafka protocol guide, ListOffsets).
_EARLIEST: Final = -2


async def listen(preferred_port: int, *, upstream_port: int) -> asyncio.Server:
    """Serve the mock cluster at `upstream_port` of 127.0.0.1 on `preferred_port`.

    Listens on any free port where `preferred_port` is in use.
    """
    proxy = _Proxy(upstream_port)
    try:
        server = await asyncio.start_server(proxy.connected, LOOPBACK, preferred_port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        server = await asyncio.start_server(proxy.connected, LOOPBACK, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    return server


class _Proxy:
    def __init__(self, upstream_port: int) -> None:
        self.port = 0
        self._upstream_port = upstream_port
        self._transactions = Transactions(partial(_call, upstream_port))

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on a client's requests, and the mock cluster's answers, until either side ends."""
        upstream_reader, upstream_writer = await asyncio.open_connection(
            LOOPBACK, self._upstream_port
        )
        changes: dict[int, Change] = {}  # by correlation id, of the answers to be changed
        with contextlib.suppress(asyncio.CancelledError):  # the broker ends
            await asyncio.gather(
                self._pass_requests(reader, upstream_writer, changes),
                self._pass_answers(upstream_reader, writer, changes),
            )

    async def _pass_requests(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        changes: dict[int, Change],
    ) -> None:
        with _until_either_ends(sink):
            while True:
                request = await _read_frame(source)
                head = Head.of(request)
                if head.api_key == METADATA:
                    changes[head.correlation] = partial(self._metadata, head)
                elif head.api_key == FIND_COORDINATOR:
                    changes[head.correlation] = self._with_own_port
                elif head.api_key == LIST_OFFSETS:
                    request = from_the_beginning(head, request)
                else:
                    request, change = await self._transactions.requested(head, request)
                    if change is not None:
                        changes[head.correlation] = change
                await _write_frame(sink, request)

    async def _pass_answers(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        changes: dict[int, Change],
    ) -> None:
        with _until_either_ends(sink):
            while True:
                answer = await _read_frame(source)
                change = changes.pop(INT32.unpack_from(answer)[0], None)
                await _write_frame(sink, answer if change is None else await change(answer))

    async def _metadata(self, head: Head, answer: bytes) -> bytes:
        return await self._with_own_port(_with_controller(head, answer))

    async def _with_own_port(self, answer: bytes) -> bytes:
        host = LOOPBACK.encode()
        return answer.replace(host + INT32.pack(self._upstream_port), host + INT32.pack(self.port))


def _with_controller(head: Head, answer: bytes) -> bytes:
    """Name the only broker as the controller: the mock cluster names a broker that is not there."""
    if head.version < 1:
        return answer
    body = Reader(answer, flexible=head.is_flexible, at=INT32.size)  # behind the correlation id
    body.skip_tags()
    if head.version >= 3:
        body.number(INT32)  # throttle time
    broker = b""
    for _ in range(body.count()):
        broker = body.raw(INT32.size)
        body.text()  # host
        body.number(INT32)  # port
        body.text()  # rack
        body.skip_tags()
    if head.version >= 2:
        body.text()  # cluster id
    return answer[: body.at] + broker + answer[body.at + len(broker) :]


def from_the_beginning(head: Head, request: bytes) -> bytes:
    """Ask for the earliest offsets in place of offsets by time, for which the mock cluster has -1.

    So a consumer that begins at a time gets older records too, and passes them over.
    """
    changed = bytearray(request)
    body = Reader.of_body(request, head)
    body.number(INT32)  # replica
    if head.version >= 2:
        body.raw(1)  # isolation
    for _ in range(body.count()):
        body.text()  # topic
        for _ in range(body.count()):
            body.number(INT32)  # partition
            if head.version >= 4:
                body.number(INT32)  # leader's epoch
            at = body.at
            if body.number(INT64) >= 0:
                INT64.pack_into(changed, at, _EARLIEST)
            if head.version == 0:
                body.number(INT32)  # most offsets
            body.skip_tags()
        body.skip_tags()
    return bytes(changed)


@contextlib.contextmanager
def _until_either_ends(sink: asyncio.StreamWriter) -> Iterator[None]:
    """Close `sink` behind the last frame.

    A reset means the same as an end; so does a frame that can't be read (struct.error, IndexError).
    """
    ends = (OSError, asyncio.IncompleteReadError, struct.error, IndexError)
    with contextlib.suppress(*ends), contextlib.closing(sink):
        yield


async def _read_frame(source: asyncio.StreamReader) -> bytes:
    (length,) = INT32.unpack(await source.readexactly(INT32.size))
    if not 0 <= length <= _MAX_FRAME_BYTES:
        raise ConnectionError(f"no frame has {length} bytes")
    return await source.readexactly(length)


async def _write_frame(sink: asyncio.StreamWriter, frame: bytes) -> None:
    sink.writelines((INT32.pack(len(frame)), frame))
    await sink.drain()


async def _call(port: int, request: bytes) -> bytes:
    """Return the answer to a request of the proxy's own.

    Raises:
        OSError: the mock cluster is gone.
        asyncio.IncompleteReadError: likewise.
    """
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    with contextlib.closing(writer):
        await _write_frame(writer, request)
        return await _read_frame(reader)
