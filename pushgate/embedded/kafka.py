"""A Kafka-protocol broker for `pushgate dev`: librdkafka's mock cluster, from confluent-kafka.

Nothing else on PyPI serves the protocol, and Apache Kafka wants Java and a download of 45 MB.

What to know of it. Topics appear when first named, with 4 partitions, and keep their last 5 MB or
100,000 records each. An empty fetch is answered when its wait ends, not when a record arrives, so
give a consumer FETCH_WAIT_MS. A group takes one member, and a commit from outside the group only
before its first member; a second member with other assignors ends the broker (an assertion in C),
which is why it runs in a process of its own: `python -m pushgate.embedded.kafka --port N` prints
the bootstrap address and serves until its standard input closes.
"""

import argparse
import asyncio
import contextlib
import ctypes
import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pushgate
from pushgate.embedded import LOOPBACK, EmbeddedError, require

#: The `fetch_max_wait_ms` to consume with: the most that a message waits, at 50 empty fetches/s.
FETCH_WAIT_MS: Final = 20

START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
#: The working directory in which `broker_command` finds this module, installed or not.
PACKAGE_ROOT: Final = Path(pushgate.__file__).parent.parent

_CHUNK_BYTES: Final = 1 << 16
_RD_KAFKA_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512


class EmbeddedKafka:
    """The broker as a child process; an async context manager, or start and stop.

    `port`, on 127.0.0.1, is taken where it is free; otherwise, or where it is 0, any free port is.
    """

    def __init__(self, *, port: int = 9092) -> None:
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self.bootstrap = ""

    async def start(self) -> None:
        """Start it and return when it listens. Raises EmbeddedError if it does not within 10 s."""
        require("confluent_kafka")
        self._process = await asyncio.create_subprocess_exec(
            *broker_command(self._port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PACKAGE_ROOT,
            # Ctrl-C in the terminal is for the parent, which stops its servers last.
            start_new_session=True,
        )
        try:
            self.bootstrap = await _first_line(self._process)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Return its exit status (negative for a signal) once it has ended, by whatever cause."""
        if self._process is None:
            raise EmbeddedError("the embedded Kafka has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop it; its records are gone. Harmless when it has ended or never started."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - it was started with a pipe
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def broker_command(port: int) -> list[str]:
    """Give the command that runs the broker; run it in PACKAGE_ROOT with a pipe as its input."""
    return [sys.executable, "-m", "pushgate.embedded.kafka", "--port", str(port)]


async def _first_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    except TimeoutError as error:
        raise EmbeddedError(
            f"the embedded Kafka did not listen within {START_SECONDS:g} s"
        ) from error
    if not line:
        raise EmbeddedError(
            f"the embedded Kafka ended at its start with status {await process.wait()}"
        )
    return line.decode().strip()


def main() -> None:
    """Run the broker in this process until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m pushgate.embedded.kafka")
    parser.add_argument("--port", type=int, default=9092, help="preferred port on 127.0.0.1")
    asyncio.run(_serve(parser.parse_args().port))


async def _serve(preferred_port: int) -> None:
    with _mock_cluster() as cluster_port:
        server = await _listen(preferred_port, upstream_port=cluster_port)
        host, listening_port = server.sockets[0].getsockname()
        sys.stdout.write(f"{host}:{listening_port}\n")
        sys.stdout.flush()
        # A closed input is the one sign of a parent's end that every system gives.
        await asyncio.to_thread(sys.stdin.buffer.read)
        server.close()


@contextlib.contextmanager
def _mock_cluster() -> Iterator[int]:
    """Run a cluster of one broker; gives its port on 127.0.0.1, which librdkafka chose.

    The setting `test.mock.num.brokers` would make the same cluster with less, but its groups wait
    3 s for more members, which never may come, before their first assignment.
    """
    librdkafka = _librdkafka()
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    settings = librdkafka.rd_kafka_conf_new()
    # It warns of having no bootstrap.servers, which this client, a mere owner, never uses.
    librdkafka.rd_kafka_conf_set(settings, b"log_level", b"0", error, _ERROR_BYTES)
    client = librdkafka.rd_kafka_new(_RD_KAFKA_PRODUCER, settings, error, _ERROR_BYTES)
    if not client:
        raise EmbeddedError(f"librdkafka: {error.value.decode()}")
    cluster = librdkafka.rd_kafka_mock_cluster_new(client, 1)
    try:
        librdkafka.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
        address: bytes = librdkafka.rd_kafka_mock_cluster_bootstraps(cluster)
        yield int(address.rpartition(b":")[2])
    finally:
        librdkafka.rd_kafka_mock_cluster_destroy(cluster)
        librdkafka.rd_kafka_destroy(client)


def _librdkafka() -> ctypes.CDLL:
    """Open the library that confluent-kafka links; raises EmbeddedError where it lacks a name."""
    from confluent_kafka import cimpl  # noqa: PLC0415 - only the broker's own process needs it

    # Names are sought in what the extension links too, whatever a wheel calls that file.
    library = ctypes.CDLL(cimpl.__file__)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (number, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise EmbeddedError(f"confluent-kafka's librdkafka has no {name}") from error
        function.restype, function.argtypes = result, arguments
    return library


async def _listen(preferred_port: int, *, upstream_port: int) -> asyncio.Server:
    """Forward a fixed port to the cluster's; metadata sends clients to the latter afterwards."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(LOOPBACK, upstream_port)
        await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))

    try:
        return await asyncio.start_server(forward, LOOPBACK, preferred_port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return await asyncio.start_server(forward, LOOPBACK, 0)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    # A reset on one side means the same as its end: the other side is closed.
    with contextlib.suppress(OSError), contextlib.closing(sink):
        while chunk := await source.read(_CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()


if __name__ == "__main__":
    main()
