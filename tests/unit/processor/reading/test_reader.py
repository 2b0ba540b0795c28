"""Unreadable records: each is read as a stand-in, until it was taken in."""

from __future__ import annotations

from typing import Any, cast

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.progress import Progress
from processor.reading.reader import Reader

pytestmark = pytest.mark.anyio

A = TopicPartition("push", 0)


class Client:
    """A consumer's client whose record at offset 7 can't be read."""

    def __init__(self) -> None:
        self.position = 7
        self.sought: list[int] = []

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.position = offset
        self.sought.append(offset)

    async def getmany(self, *_: TopicPartition, **__: object) -> dict[TopicPartition, list[Any]]:
        if self.position == 7:
            b"\xff".decode()
        return {}


@pytest.mark.parametrize("is_taken", [True, False])
async def test_a_record_that_was_not_taken_in_is_read_again(is_taken: bool) -> None:
    client, progress = Client(), Progress(A, lane=0)
    progress.follow(7)
    reader = Reader(
        cast("Any", client),
        {A: progress},
        lanes={"push": 0},
        weights=(1,),
        batch_messages=100,
        stopping=lambda: False,
        advanced=lambda _: None,
    )
    async for batch in reader._read_singly(A, 7):
        for record in batch.get(A, ()):
            assert record.offset == 7
            if is_taken:
                progress.begin(7, size=1, timestamp_ms=0)
    assert client.sought == ([8] if is_taken else [])
