"""What the embedded broker's proxy asks the mock cluster in place of what clients ask."""

from __future__ import annotations

import pytest

from pushgate.embedded.kafka_proxy import from_the_beginning
from pushgate.embedded.kafka_wire import INT32, INT64, LIST_OFFSETS, Head, Writer

#: Of two topics with two partitions each: by time, the end, the beginning, at the epoch.
TIMES = [1_700_000_000_000, -1, -2, 0]


def list_offsets(version: int, times: list[int]) -> bytes:
    """Give a request, by the Kafka protocol guide."""
    head = Head(LIST_OFFSETS, version, 7)
    body = Writer(flexible=head.is_flexible)
    body.number(INT32, -1)
    if version >= 2:
        body.frame.append(0)
    body.count(2)
    for first in (0, 2):
        body.text(b"topic")
        body.count(2)
        for partition, time in enumerate(times[first : first + 2]):
            body.number(INT32, partition)
            if version >= 4:
                body.number(INT32, -1)
            body.number(INT64, time)
            if version == 0:
                body.number(INT32, 1)
            body.end_structure()
        body.end_structure()
    body.end_structure()
    return head.request(bytes(body.frame))


@pytest.mark.parametrize("version", [0, 1, 3, 4, 6, 7])
def test_offsets_by_time_are_asked_for_from_the_beginning(version: int) -> None:
    changed = from_the_beginning(Head(LIST_OFFSETS, version, 7), list_offsets(version, TIMES))
    assert changed == list_offsets(version, [-2, -1, -2, -2])
