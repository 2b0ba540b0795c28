"""A publisher in its own process, for throughput.py, processor.py and kills.py.

Publishes as fast as possible, or at a fixed rate. Message n is for user n modulo the number of
users; the payload begins with the message's number among the messages of the same user.
With `--acknowledged FILE` the times of all acknowledgements are written to FILE as an array of
doubles, in the order of the messages, by the clock that all processes of a machine share
(CLOCK_MONOTONIC). SIGTERM ends the publisher early. At the end the publisher prints how many
messages were acknowledged.

    python -m loadtest.produce --kafka HOST:PORT --topic T --messages N --users U [--rate R]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from aiokafka import AIOKafkaProducer

from loadtest.ledger import payload

#: Messages that may wait for acknowledgement at once: a bound on the publisher's memory.
_WINDOW: Final = 20_000


def produce_command(**options: object) -> list[str]:
    """Return the command of a publisher process; the options are those of `main`."""
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "loadtest.produce", *flags]


class Publisher:
    """Publishes messages, and records the time of every acknowledgement."""

    def __init__(self, producer: AIOKafkaProducer, arguments: argparse.Namespace) -> None:
        self._producer = producer
        self._topic: str = arguments.topic
        self._messages: int = arguments.messages
        self._keys = [f"user-{number}".encode() for number in range(arguments.users)]
        self._rate: float = arguments.rate
        self.acknowledged = array("d", bytes(8 * self._messages))

    def stop(self) -> None:
        """Publish no further message; `run` returns once Kafka has acknowledged the last one."""
        self._messages = 0

    async def run(self) -> int:
        """Publish all messages, or as many as go before `stop`; return how many."""
        window = asyncio.Semaphore(_WINDOW)
        began = time.monotonic()
        for number in itertools.count():
            if number >= self._messages:
                break
            early = began + number / self._rate - time.monotonic() if self._rate else 0.0
            if early > 0:
                await asyncio.sleep(early)
            await window.acquire()
            turn, user = divmod(number, len(self._keys))
            sent = await self._producer.send(self._topic, payload(turn), key=self._keys[user])
            sent.add_done_callback(self._recorder(number, window))
        await self._producer.flush()
        for _ in range(_WINDOW):  # once all of the window is free, every callback has run
            await window.acquire()
        return number

    def _recorder(
        self, number: int, window: asyncio.Semaphore
    ) -> Callable[[asyncio.Future[object]], None]:
        def record(sent: asyncio.Future[object]) -> None:
            # Raises when Kafka did not take the message: its place in the window is then never
            # free again, and `run` does not return.
            sent.result()
            self.acknowledged[number] = time.monotonic()
            window.release()

        return record


async def _publish(arguments: argparse.Namespace) -> array[float]:
    linger = 0 if arguments.rate else 5
    async with AIOKafkaProducer(
        bootstrap_servers=arguments.kafka, acks="all", linger_ms=linger, max_batch_size=65_536
    ) as producer:
        publisher = Publisher(producer, arguments)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, publisher.stop)
        print(await publisher.run(), flush=True)
    return publisher.acknowledged


def main() -> None:
    """Publish, then write the times of the acknowledgements to the file."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.produce")
    parser.add_argument("--kafka", required=True, help="bootstrap servers")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="messages/s; 0: no pace")
    parser.add_argument("--acknowledged", type=Path, help="file for the times")
    arguments = parser.parse_args()
    acknowledged = uvloop.run(_publish(arguments))
    if arguments.acknowledged is not None:
        arguments.acknowledged.write_bytes(acknowledged.tobytes())


if __name__ == "__main__":
    main()
