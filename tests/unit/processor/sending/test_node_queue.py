"""One node's queue while batches are under way: a message is in one place, and none vanishes."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.forward import OVERLOADED
from processor.sending.node_queue import NodeQueue
from tests.support.dispatching import envelope


def messages(user: str, *offsets: int, size: int = 0) -> list[Message]:
    progress = Progress(TopicPartition("t0", 0), lane=0)
    return [Message(envelope(user, str(offset)), progress, offset, size=size) for offset in offsets]


def waiting_in(queue: NodeQueue) -> list[int]:
    return sorted(message.offset for message in queue)


def test_a_line_whose_attempt_is_not_sent_has_its_next_attempt_to_itself() -> None:
    queue = NodeQueue([1], patience_seconds=10.0)
    (refused,), (other,) = messages("slow", 0), messages("other", 1)
    queue.put(refused)
    queue.returned(queue.next_batch(10, 0.0), [OVERLOADED], 0.0)
    queue.put(other)
    first = queue.next_batch(10, 1.0)
    assert first.messages == [refused, other]
    # The message is replaced before the batch goes; the batch is under way without it.
    queue.leave([refused], None)
    first = queue.narrowed(first, [other])
    later, last = messages("slow", 2, 3)
    for message in (later, last):
        if queue.has_line(message):
            assert queue.join_line(message, 1.0)
        else:
            queue.put(message)
    queue.expire(1.5, lambda _: True)
    second = queue.next_batch(1, 2.0, keys_under_way={other.key})
    assert second.messages == [later]
    assert queue.returned(first, [1], 2.0) == ([(other, 1)], [])
    queue.put_back(second)
    assert waiting_in(queue) == [2, 3]


@pytest.mark.parametrize(("size", "asked"), [(100, 16), (10_000, 3), (64_000, 1)])
def test_a_user_without_room_is_asked_with_few_bytes_until_there_is_room(
    size: int, asked: int
) -> None:
    queue = NodeQueue([1], patience_seconds=1_000.0)
    refused = messages("slow", *range(40), size=size)
    for message in refused:
        queue.put(message)
    queue.returned(queue.next_batch(40, 0.0), [OVERLOADED] * 40, 0.0)
    for now in (10.0, 20.0):  # beyond every pause
        attempt = queue.next_batch(1_000, now)
        assert attempt.messages == refused[:asked]
        queue.returned(attempt, [OVERLOADED] * asked, now)
    queue.returned(queue.next_batch(1_000, 30.0), [1] * asked, 30.0)
    assert queue.next_batch(1_000, 40.0).messages == refused[asked:]
