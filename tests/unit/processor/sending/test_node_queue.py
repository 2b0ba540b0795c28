"""One node's queue while batches are under way: a message is in one place, and none vanishes."""

from __future__ import annotations

from aiokafka import TopicPartition

from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.forward import OVERLOADED
from processor.sending.node_queue import NodeQueue
from tests.support.dispatching import envelope


def messages(user: str, *offsets: int) -> list[Message]:
    progress = Progress(TopicPartition("t0", 0), lane=0)
    return [Message(envelope(user, str(offset)), progress, offset) for offset in offsets]


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
