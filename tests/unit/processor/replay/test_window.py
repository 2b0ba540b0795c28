"""The newest messages of a partition: whose they are, which are due, and what is still complete."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from processor.reading.message import Message
from processor.replay.window import Absence, Window
from registry.message import Envelope, Push
from tests.unit.processor.replay.taken_in import NOW_MS, Partition, push_of

ALL = 2**63 - 1
CHUNK_MS = 5_000


@pytest.fixture
def partition() -> Partition:
    return Partition()


@pytest.fixture
def window() -> Window:
    return Window(0)


def take(window: Window, message: Message, now_ms: int) -> None:
    """Take one message; the last test takes many at once."""
    window.take([message], now_ms)


def offsets(
    window: Window,
    user: str = "alice",
    device: str | None = None,
    *,
    since: int = 0,
    until: int = ALL,
    now_ms: int = NOW_MS,
    read: Mapping[int, Envelope | None] | None = None,
) -> list[int]:
    kept = window.of(user, device, since, until, now_ms, read=read or {})
    return [offset for offset, push in kept if isinstance(push, bytes)]


def back(window: Window, start: int, end: int, *messages: Message, now_ms: int = 0) -> None:
    """Let messages of an earlier owner precede a window."""
    earlier = Window(start)
    earlier.take(messages, now_ms)
    window.precede(earlier, end)


def test_a_user_gets_its_own_messages_in_order_and_nobody_elses(
    window: Window, partition: Partition
) -> None:
    for offset in range(10):
        take(window, partition.message(offset, "alice" if offset % 3 else "bob"), 0)
    assert offsets(window) == [1, 2, 4, 5, 7, 8]
    assert offsets(window, "bob") == [0, 3, 6, 9]
    assert offsets(window, "carol") == []


def test_a_message_comes_out_as_it_went_in(window: Window, partition: Partition) -> None:
    for offset, data in enumerate((b"", b"\x00\xff", b"x" * 70_000)):
        take(window, partition.message(offset, "é", device="phone", data=data), 0)
    kept = window.of("é", "phone", 0, ALL, NOW_MS, read={})
    pushes = [push_of(push) for _, push in kept if isinstance(push, bytes)]
    assert pushes == [
        Push("é", data, place, device="phone", position=place)
        for data, place in (
            (b"", "push-0-0"),
            (b"\x00\xff", "push-0-1"),
            (b"x" * 70_000, "push-0-2"),
        )
    ]


def test_messages_come_from_an_offset_on_and_up_to_another(
    window: Window, partition: Partition
) -> None:
    for at, offset in enumerate((3, 4, 8, 20)):  # a log has holes
        take(window, partition.message(offset), at * CHUNK_MS)
    assert offsets(window, since=4) == [4, 8, 20]
    assert offsets(window, since=5, until=20) == [8]
    assert offsets(window, since=21) == []
    assert window.end == 21


def test_a_device_gets_its_own_messages_and_those_for_all(
    window: Window, partition: Partition
) -> None:
    for offset, device in enumerate((None, "phone", "desk", None)):
        take(window, partition.message(offset, device=device), 0)
    assert offsets(window, device="phone") == [0, 1, 3]
    assert offsets(window, device="desk") == [0, 2, 3]
    assert offsets(window, device=None) == [0, 3]


# Due


def test_a_message_is_due_for_its_ttl(window: Window, partition: Partition) -> None:
    take(window, partition.message(0, ttl=30), 0)
    take(window, partition.message(1, ttl=None), 0)
    assert offsets(window, now_ms=NOW_MS + 30_000) == [0, 1]
    assert offsets(window, now_ms=NOW_MS + 30_001) == [1]


@pytest.mark.parametrize("ttl", [10**15, 10**16, 10**18 - 1])
def test_a_ttl_of_an_eternity_is_one(window: Window, partition: Partition, ttl: int) -> None:
    """A TTL has up to 18 digits: its end in milliseconds is beyond 64 bits."""
    take(window, partition.message(0, ttl=ttl), 0)
    take(window, partition.message(1), 0)
    assert offsets(window, now_ms=10**17) == [0, 1]


def test_a_ttl_of_0_is_due_until_the_message_is_settled(
    window: Window, partition: Partition
) -> None:
    for offset in range(3):
        take(window, partition.message(offset, ttl=0), offset * CHUNK_MS)
    assert offsets(window) == [0, 1, 2]
    window.settled(1)
    assert offsets(window) == [0, 2]
    window.settled(17)  # dropped long ago, or never here
    assert offsets(window) == [0, 2]


def test_of_messages_with_a_collapse_key_only_the_newest_is_due(
    window: Window, partition: Partition
) -> None:
    wishes = [
        ("alice", None, "k"),
        ("alice", None, "other"),
        ("bob", None, "k"),
        ("alice", "phone", "k"),
        ("alice", None, None),
        ("alice", None, "k"),
        ("alice", None, "k"),
    ]
    for offset, (user, device, key) in enumerate(wishes):
        message = partition.message(offset, user, device=device, collapse_key=key)
        take(window, message, offset * CHUNK_MS)
    assert offsets(window, device="phone") == [1, 3, 4, 6]
    assert offsets(window, "bob") == [2]


# Bounds


def test_what_is_dropped_is_no_longer_complete(window: Window, partition: Partition) -> None:
    for offset in range(6):
        take(window, partition.message(offset), offset // 2 * CHUNK_MS)
    size = window.size
    assert (window.floor, window.end) == (0, 6)
    window.end_oldest()
    assert (window.floor, window.end) == (2, 6)
    assert 0 < window.size < size
    assert offsets(window) == [2, 3, 4, 5]
    window.end_oldest()
    window.end_oldest()
    assert (window.floor, window.end, window.size, window.began_ms) == (6, 6, 0, None)


def test_a_chunk_is_old_when_its_last_message_can_only_be_older(
    window: Window, partition: Partition
) -> None:
    take(window, partition.message(0), 1_000)
    take(window, partition.message(1), 5_999)
    assert not window.is_older_than(5_999)
    assert window.is_older_than(1_000 + CHUNK_MS)
    take(window, partition.message(2), 9_000)
    assert window.is_older_than(9_000)
    assert not window.is_older_than(8_999)


def test_much_at_once_is_kept_in_pieces_that_can_be_dropped_one_by_one(
    window: Window, partition: Partition
) -> None:
    for offset in range(5):
        take(window, partition.message(offset, data=b"x" * 600_000), 0)
    size = window.size
    window.end_oldest()
    assert window.size >= size / 3
    assert offsets(window) == list(range(window.floor, 5))


def test_a_collapse_key_of_what_was_dropped_is_forgotten(
    window: Window, partition: Partition
) -> None:
    take(window, partition.message(0, collapse_key="k"), 0)
    take(window, partition.message(1), CHUNK_MS)
    window.end_oldest()
    assert window._collapsing == {}
    take(window, partition.message(2, collapse_key="k"), CHUNK_MS)
    assert offsets(window) == [1, 2]


# Assigned anew


def test_a_partition_that_goes_on_where_it_was_keeps_its_messages(
    window: Window, partition: Partition
) -> None:
    for message in partition.messages(0, 1, 2):
        take(window, message, 0)
    window.restart(3)
    take(window, partition.message(3), 0)
    assert (window.floor, offsets(window)) == (0, [0, 1, 2, 3])


@pytest.mark.parametrize("start", [0, 1, 2, 4, 1_000])
def test_a_partition_that_goes_on_elsewhere_has_each_message_once_and_claims_no_others(
    window: Window, partition: Partition, start: int
) -> None:
    for message in partition.messages(0, 1, 2):
        take(window, message, 0)
    window.restart(start)
    for message in partition.messages(*range(start, start + 4)):
        take(window, message, 0)
    assert window.end == start + 4
    assert offsets(window, since=window.floor) == list(range(window.floor, start + 4))
    if start > 3:
        assert window.floor == start, "another member has read what lies between"


# Read back


def test_what_was_read_back_comes_before_the_rest(window: Window, partition: Partition) -> None:
    window.restart(10)
    late = partition.messages(10, 11)
    for message in late:
        take(window, message, 7_000)
    back(window, 4, 10, *partition.messages(5, 7, 9), now_ms=9_000)
    assert (window.floor, window.end) == (4, 12)
    assert offsets(window) == [5, 7, 9, 10, 11]
    window.end_oldest()
    assert (window.floor, offsets(window)) == (10, [10, 11])


def test_what_was_read_back_counts_for_the_size(window: Window, partition: Partition) -> None:
    window.restart(10)
    back(window, 0, 10, *partition.messages(*range(10)))
    assert window.size > 0
    while window.began_ms is not None:
        window.end_oldest()
    assert window.size == 0


def test_of_what_was_read_back_nothing_is_due_that_was_replaced_or_has_expired(
    window: Window, partition: Partition
) -> None:
    window.restart(10)
    take(window, partition.message(10, collapse_key="k"), 0)
    back(
        window,
        0,
        10,
        partition.message(1, collapse_key="k"),
        partition.message(2, collapse_key="l"),
        partition.message(4, collapse_key="l"),
        partition.message(5, ttl=1),
    )
    assert offsets(window, now_ms=NOW_MS + 2_000) == [4, 10]
    take(window, partition.message(11, collapse_key="l"), 0)
    assert offsets(window, now_ms=NOW_MS + 2_000) == [10, 11]


def test_what_was_read_back_for_a_window_that_began_anew_meanwhile_is_dropped(
    window: Window, partition: Partition
) -> None:
    window.restart(10)
    messages = partition.messages(5, 6)
    window.restart(20)
    back(window, 4, 10, *messages)
    assert (window.floor, offsets(window)) == (20, [])


# Evicted


def envelopes(messages: Sequence[Message]) -> dict[int, Envelope | None]:
    """Return messages as they are when they were read again."""
    return {message.offset: message.envelope for message in messages}


def kept(window: Window, read: Mapping[int, Envelope | None]) -> list[tuple[int, object]]:
    found = window.of("alice", None, 0, ALL, NOW_MS, read=read)
    return [(at, push if isinstance(push, Absence) else None) for at, push in found]


def test_an_evicted_message_is_still_the_windows_and_its_payload_is_not(
    window: Window, partition: Partition
) -> None:
    messages = partition.messages(*range(6))
    for message in messages:
        take(window, message, message.offset // 2 * CHUNK_MS)
    size = window.size
    window.evict(2)
    assert (window.floor, window.end, window.count) == (0, 6, 6)
    assert 0 < window.size < size / 2
    assert window.evicted("alice", 1, ALL) == [1, 2, 3]
    assert window.evicted("alice", 0, 2) == [0, 1]
    assert window.evicted("bob", 0, ALL) == []
    unread = [(at, Absence.UNREAD) for at in range(4)]
    assert kept(window, {}) == [*unread, (4, None), (5, None)]
    assert offsets(window, read=envelopes(messages)) == [*range(6)]


def test_an_evicted_message_that_kafka_has_no_more_is_told_from_one_to_be_read(
    window: Window, partition: Partition
) -> None:
    for message in partition.messages(0, 1, 2):
        take(window, message, 0)
    window.evict(1)
    read = {0: None, 1: partition.message(1).envelope}
    assert kept(window, read) == [(0, Absence.GONE), (1, None), (2, Absence.UNREAD)]


def test_an_evicted_message_comes_out_as_it_went_in(window: Window, partition: Partition) -> None:
    message = partition.message(0, "é", device="phone", data=b"\x00\xff")
    take(window, message, 0)
    window.evict(1)
    [(_, push)] = window.of("é", "phone", 0, ALL, NOW_MS, read=envelopes([message]))
    assert isinstance(push, bytes)
    assert push_of(push) == message.push


def test_what_was_read_again_for_another_user_or_device_is_not_due(
    window: Window, partition: Partition
) -> None:
    """Hashes of two users can be equal, and devices are not in the index."""
    messages = [partition.message(0), partition.message(1, device="phone"), partition.message(2)]
    for message in messages:
        take(window, message, 0)
    window.evict(1)
    read = envelopes(messages) | {2: partition.message(2, "mallory").envelope}
    assert offsets(window, read=read) == [0]
    assert offsets(window, device="phone", read=read) == [0, 1]
    assert offsets(window, device="desk", read=read) == [0]


def test_an_evicted_message_is_due_for_its_ttl(window: Window, partition: Partition) -> None:
    messages = [partition.message(0, ttl=30), partition.message(1)]
    for message in messages:
        take(window, message, 0)
    window.evict(1)
    read = envelopes(messages)
    assert offsets(window, now_ms=NOW_MS + 30_000, read=read) == [0, 1]
    assert offsets(window, now_ms=NOW_MS + 30_001, read=read) == [1]


def test_an_evicted_message_with_a_ttl_of_0_is_due_until_it_is_settled(
    window: Window, partition: Partition
) -> None:
    messages = [partition.message(offset, ttl=0) for offset in range(3)]
    for message in messages:
        take(window, message, 0)
    window.settled(0)
    window.evict(1)
    read = envelopes(messages)
    assert window.evicted("alice", 0, ALL) == [1, 2], "what is settled is not read again"
    assert offsets(window, read=read) == [1, 2]
    window.settled(1)
    assert offsets(window, read=read) == [2]


def test_an_evicted_message_is_replaced_by_a_newer_one_evicted_or_at_hand(
    window: Window, partition: Partition
) -> None:
    wishes = [
        (0, "alice", None, "k"),  # replaced in its chunk
        (0, "alice", None, "k"),  # replaced by a chunk that is evicted too
        (0, "alice", "phone", "k"),
        (0, "bob", None, "k"),
        (0, "alice", None, "l"),  # replaced by one that is settled, and never due again
        (1, "alice", None, "k"),  # replaced by one at hand
        (1, "alice", None, "l"),
        (2, "alice", None, "k"),
    ]
    messages = [
        partition.message(at, user, device=device, collapse_key=key, ttl=0 if at == 6 else None)
        for at, (_, user, device, key) in enumerate(wishes)
    ]
    for (chunk, *_), message in zip(wishes, messages, strict=True):
        window.evict(len(window.at_hand) if message.offset in (5, 7) else 0)
        take(window, message, chunk * CHUNK_MS)
        if message.offset == 6:
            window.settled(6)
    assert window.evicted("alice", 0, ALL) == [1, 2, 4, 5]
    read = envelopes(messages)
    assert offsets(window, device="phone", read=read) == [2, 7]
    assert offsets(window, "bob", read=read) == [3]


def test_messages_of_an_earlier_owner_are_evicted_where_later_ones_are(
    window: Window, partition: Partition
) -> None:
    window.restart(10)
    take(window, partition.message(10), 0)
    take(window, partition.message(11), CHUNK_MS)
    window.evict(1)
    back(window, 4, 10, *partition.messages(5, 7))
    assert window.evicted("alice", 0, ALL) == [5, 7, 10]
    assert (window.floor, offsets(window)) == (4, [11])


def test_evicted_messages_of_an_earlier_owner_come_first(
    window: Window, partition: Partition
) -> None:
    window.restart(10)
    take(window, partition.message(10), 0)
    earlier = Window(4)
    earlier.take(partition.messages(5, 6), 0)
    earlier.take(partition.messages(7), CHUNK_MS)
    earlier.evict(1)
    window.precede(earlier, 10)
    assert window.evicted("alice", 0, ALL) == [5, 6]
    assert (window.floor, window.count, offsets(window)) == (4, 4, [7, 10])


def test_the_oldest_part_ends_whether_evicted_or_not(window: Window, partition: Partition) -> None:
    for offset in range(4):
        take(window, partition.message(offset), offset * CHUNK_MS)
    window.evict(2)
    assert window.began_ms == 0
    assert window.is_older_than(2 * CHUNK_MS)
    assert not window.is_older_than(2 * CHUNK_MS - 1)
    window.end_oldest()
    assert (window.floor, window.too_far, window.count, window.size > 0) == (2, 2, 2, True)
    window.end_oldest()
    assert (window.floor, window.began_ms) == (3, 3 * CHUNK_MS)


# All together


def test_whatever_happens_it_gives_what_a_list_of_all_messages_would(partition: Partition) -> None:
    draw = random.Random(8)
    for _ in range(60):
        window, everything, now = Window(0), list[tuple[int, str, str | None]](), 0
        read: dict[int, Envelope | None] = {}
        batch: list[Message] = []
        for offset in range(draw.randrange(1, 400)):
            if draw.random() < 0.1:
                continue
            user, device = draw.choice("abc"), draw.choice((None, None, "phone", "desk"))
            data = b"x" * draw.choice((0, 10, 50_000))
            now += draw.randrange(200)
            batch.append(partition.message(offset, user, device=device, data=data))
            everything.append((offset, user, device))
            read[offset] = batch[-1].envelope
            if draw.random() < 0.2:
                window.take(batch, now)
                batch = batch[-2:]  # some come again
            if draw.random() < 0.01 and window.began_ms is not None:
                window.end_oldest()
            if draw.random() < 0.05:
                window.evict(draw.randrange(len(window.at_hand) + 1))
        window.take(batch, now)
        since, until = sorted((draw.randrange(420), draw.randrange(420)))
        since = max(since, window.floor)
        for user in "abcd":
            for device in (None, "phone"):
                assert offsets(window, user, device, since=since, until=until, read=read) == [
                    at
                    for at, whose, only in everything
                    if since <= at < until and whose == user and only in (None, device)
                ]


def test_collapse_keys_count_for_the_size(window: Window, partition: Partition) -> None:
    """Else keys that are never used again would take memory without a bound."""
    take(window, partition.message(0, "alice"), 0)
    plain = window.size
    take(window, partition.message(1, "alice", collapse_key="k"), 0)
    assert window.size - plain > plain
    window.end_oldest()
    assert window.size == 0
