"""Reading an accessory, the outcomes or the dead-letter topic, apart from any group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from processor.reading.kafka import AIOKafkaConsumer, leave, log_consumer, partitions_of
from processor.settings import KafkaSettings
from pushgate.errors import PushgateError

_FETCH_BYTES: Final = 1024 * 1024
#: How long a topic is looked for.
_LOOK_SECONDS: Final = 10.0


class UnreadableTopic(PushgateError):
    """There is no such topic to read; the text says what to do."""


@asynccontextmanager
async def reading(
    settings: KafkaSettings, topic: str, *, setting: str, since_ms: int | None = None
) -> AsyncIterator[AIOKafkaConsumer]:
    """Yield a consumer of a topic: from its end, or from the first record of `since_ms` on.

    `setting` names the topic's setting in errors; `since_ms` is in epoch milliseconds, by the
    records' timestamps.

    Raises:
        UnreadableTopic: the topic does not exist, or was not found in time.
        KafkaError: no broker answers, or the topic may not be read.
    """
    consumer = log_consumer(settings, fetch_bytes=_FETCH_BYTES)
    try:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await _begin(consumer, settings, topic, setting, since_ms)
        except TimeoutError:
            raise UnreadableTopic(
                f"the topic {topic} ({setting}) could not be read within {_LOOK_SECONDS:g} s"
            ) from None
        yield consumer
    finally:
        await leave(consumer)


async def _begin(
    consumer: AIOKafkaConsumer,
    settings: KafkaSettings,
    topic: str,
    setting: str,
    since_ms: int | None,
) -> None:
    partitions = await partitions_of(settings, [topic])
    if not partitions:
        raise UnreadableTopic(
            f"the topic {topic} ({setting}) does not exist: create it, or set "
            "PUSHGATE_CREATE_TOPICS=true for processors"
        )
    await consumer.start()
    consumer.assign(partitions)
    await consumer.seek_to_end(*partitions)
    for partition in partitions:  # the ends as they are now
        await consumer.position(partition)
    if since_ms is None:
        return
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
    for partition, first in found.items():
        if first is not None:
            consumer.seek(partition, first.offset)
