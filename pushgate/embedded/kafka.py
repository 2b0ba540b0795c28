"""A Kafka-protocol broker for `pushgate dev`: librdkafka's mock cluster, from confluent-kafka.

No other package on PyPI serves the protocol, and Apache Kafka needs Java and a download of 45 MB.

Peculiarities of the mock cluster:

- A topic appears when a client first names the topic. A topic has 4 partitions; a partition keeps
  the last 5 MB or 100,000 records.
- An empty fetch is answered when the fetch's wait ends, not when a record arrives, so consumers
  should have `fetch_max_wait_ms` at FETCH_WAIT_MS.
- Transactions work with the help of kafka_proxy.py, which is all that clients see of the cluster.
- A group takes one member, and a commit from outside the group only before the first member.
- A second member with other assignors ends the broker (an assertion in C). Therefore the broker
  runs in a process of its own: `python -m pushgate.embedded.kafka --port N` prints the bootstrap
  address and serves until standard input closes.
"""

import argparse
import asyncio
import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pushgate
from pushgate.embedded import EmbeddedError, require
from pushgate.embedded.kafka_proxy import listen

#: The `fetch_max_wait_ms` for consumers: the longest wait of a message, at 50 empty fetches/s.
FETCH_WAIT_MS: Final = 20

START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
#: The working directory in which `broker_command` finds this module, also if not installed.
PACKAGE_ROOT: Final = Path(pushgate.__file__).parent.parent

_RD_KAFKA_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512


class EmbeddedKafka:
    """The broker as a child process: an async context manager, or `start` and `stop`.

    The broker listens on `port` of 127.0.0.1 if that port is free; else, or for 0, on any free
    port. `bootstrap` is the address once the broker has started.
    """

    def __init__(self, *, port: int = 9092) -> None:
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self.bootstrap = ""

    async def start(self) -> None:
        """Start the broker; return when the broker listens.

        Raises:
            EmbeddedError: the broker ended, or did not listen within 10 s.
        """
        require("confluent_kafka")
        self._process = await asyncio.create_subprocess_exec(
            *broker_command(self._port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PACKAGE_ROOT,
            # A Ctrl-C in the terminal is for the parent alone: the parent stops servers last.
            start_new_session=True,
        )
        try:
            self.bootstrap = await _first_line(self._process)
        except BaseException:
            await self.stop()
            raise

    @property
    def port(self) -> int:
        """The port that the broker listens on, once it has started."""
        return int(self.bootstrap.rpartition(":")[2])

    async def wait(self) -> int:
        """Wait until the broker has ended for any reason; return the exit status.

        The status is negative for a signal.

        Raises:
            EmbeddedError: the broker has not been started.
        """
        if self._process is None:
            raise EmbeddedError("the embedded Kafka has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the broker; all records are gone. Harmless where no broker runs."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - `start` made a pipe
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
    """Give the command that runs the broker, in PACKAGE_ROOT and with a pipe as standard input."""
    return [sys.executable, "-m", "pushgate.embedded.kafka", "--port", str(port)]


async def _first_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None  # noqa: S101 - `start` made a pipe
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
        server = await listen(preferred_port, upstream_port=cluster_port)
        host, listening_port = server.sockets[0].getsockname()
        sys.stdout.write(f"{host}:{listening_port}\n")
        sys.stdout.flush()
        # A closed standard input is the only sign of a parent's end on every operating system.
        await asyncio.to_thread(sys.stdin.buffer.read)
        server.close()


@contextlib.contextmanager
def _mock_cluster() -> Iterator[int]:
    """Run a cluster of one broker; yield the broker's port on 127.0.0.1, chosen by librdkafka.

    The setting `test.mock.num.brokers` would make the same cluster with less code. But groups of
    such a cluster wait 3 s for more members before the first assignment, and no more can come.
    """
    librdkafka = _librdkafka()
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    settings = librdkafka.rd_kafka_conf_new()
    # librdkafka would warn of a client without bootstrap.servers: this client only owns the
    # cluster, and never connects.
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
    """Open the librdkafka that confluent-kafka links.

    Raises:
        EmbeddedError: the library lacks a function.
    """
    from confluent_kafka import cimpl  # noqa: PLC0415 - only the broker's own process needs it

    # dlsym also searches the libraries that the extension module links: the file name of
    # librdkafka, which differs among wheels, is not needed.
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


if __name__ == "__main__":
    main()
