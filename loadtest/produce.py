"""A publisher in a process of its own, for throughput.py: as fast as it can, or at a pace.

Message n is for user n modulo the users; its payload begins with its number among that user's.
With `--acknowledged FILE` the time of each message's acknowledgement, by the clock that all
processes of a machine share (CLOCK_MONOTONIC), is written there as an array of doubles.
SIGTERM ends it early. At the end it prints how many messages were acknowledged.

    python -m loadtest.produce --kafka HOST:PORT --topic T --messages N --users U [--rate R]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from aiokafka import AIOKafkaProducer

from loadtest.ledger import payload

#: Messages that may await their acknowledgement: bounds the publisher's memory.
_WINDOW: Final = 20_000


class Publisher:
    """Publishes messages, and notes when each was acknowledged."""

    def __init__(self, producer: AIOKafkaProducer, arguments: argparse.Namespace) -> None:
        self._producer = producer
        self._topic: str = arguments.topic
        self._messages: int = arguments.messages
        self._keys = [f"user-{number}".encode() for number in range(arguments.users)]
        self._rate: float = arguments.rate
        self.acknowledged = array("d", bytes(8 * self._messages))

    def stop(self) -> None:
        """Publish no more than is under way."""
        self._messages = 0

    async def run(self) -> int:
        """Publish all, or until `stop`; return how many."""
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
            sent.add_done_callback(self._noting(number, window))
        await self._producer.flush()
        for _ in range(_WINDOW):  # every callback has run
            await window.acquire()
        return number

    def _noting(
        self, number: int, window: asyncio.Semaphore
    ) -> Callable[[asyncio.Future[object]], None]:
        def note(sent: asyncio.Future[object]) -> None:
            sent.result()  # a message that Kafka did not take ends the run
            self.acknowledged[number] = time.monotonic()
            window.release()

        return note


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
    """Publish, then write down the acknowledgements."""
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
