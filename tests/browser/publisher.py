"""A publisher to one user's topic, and what became of its messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaProducer

from tests.support.clients import eventually
from tests.support.processes import ProcessorProcess
from tests.system.steps import outcomes

#: Time for a page that is in a backlog of retries, and for partitions that change hands.
SECONDS: Final = 40.0


class Publisher:
    """Publishes to a user whom no other test has; `sent` has the payloads in order."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self.user = f"user-of-{topic}"
        self.sent: list[str] = []

    async def send(self, count: int = 1) -> None:
        """Publish so many messages, one after the other."""
        for _ in range(count):
            text = str(len(self.sent))
            self.sent.append(text)
            await self._producer.send_and_wait(self._topic, text.encode(), key=self.user.encode())

    async def until_the_registry_is_sure(self, processor: ProcessorProcess) -> None:
        """Return when a message for nobody is offline at once.

        A registry that was empty a moment ago is in doubt for some seconds: messages wait, and none
        would be missed by a page that is away.
        """
        await self._producer.send_and_wait(self._topic, b"", key=b"nobody")
        await eventually(
            lambda: offline(processor), "a message for nobody", timeout_seconds=SECONDS
        )

    @asynccontextmanager
    async def steadily(self) -> AsyncIterator[None]:
        """Publish about fifty messages a second until left."""
        done = asyncio.Event()

        async def publish() -> None:
            while not done.is_set():
                await self.send()
                await asyncio.sleep(0.02)  # the pace: nothing is waited for

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            yield
            done.set()


async def offline(processor: ProcessorProcess) -> float:
    """How many messages were for nobody."""
    return (await outcomes(processor)).get(("offline", ""), 0)
