"""Messages that come again: what counts as a repeat, what it is answered, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from gateway.connections.connection import Connection
from gateway.connections.delivery import Delivery
from gateway.connections.gate import Replayed
from gateway.connections.hub import Addressed, Hub, Partial, Refusal, Result, Results
from gateway.connections.partly_taken import Name, Takers
from gateway.connections.repeats import Repeats
from tests.unit.gateway.fakes import FakeConnection

#: A message of these tests: user, id (None: it came without) and device; its id has no scope.
Message = tuple[str, str | None, str | None]


class Node:
    """A node whose users take messages, or do not, as a test says; it notes what it was given."""

    def __init__(self, window: int = 100) -> None:
        self.repeats = Repeats(window)
        self.results: dict[str, Result] = {}  # by user; 1 where nothing is said
        self.takers: list[Takers] = []  # those that were said to have a message already
        self.delivered: list[tuple[str, str]] = []

    def push(self, *messages: Message) -> Results:
        batch: list[Addressed] = [
            (Delivery(b"x", message_id=message_id or "ours"), user, device)
            for user, message_id, device in messages
        ]
        names = {
            position: (user, message_id, device, None)
            for position, (user, message_id, device) in enumerate(messages)
            if message_id is not None
        }
        return self.repeats.deliver(batch, names, self._deliver)

    def push_ids(self, user: str, *ids: str) -> Results:
        return self.push(*((user, message_id, None) for message_id in ids))

    def taken(self) -> list[tuple[str, str]]:
        """Give what was delivered since the last call."""
        delivered, self.delivered = self.delivered, []
        return delivered

    def _deliver(self, batch: Sequence[Addressed], takers: Mapping[int, Takers]) -> Results:
        self.takers += [takers[at] for at in sorted(takers)]
        self.delivered += [(user, delivery.id) for delivery, user, _ in batch]
        return [self.results.get(user, 1) for _, user, _ in batch]


def test_a_message_that_comes_again_is_answered_with_the_first_result_and_not_sent() -> None:
    node = Node()
    node.results = {"alice": 3}
    assert node.push_ids("alice", "1") == [3]
    assert node.taken() == [("alice", "1")]
    node.results = {"alice": 1}  # two of three connections have gone since, or all three
    assert node.push_ids("alice", "1") == [3]
    node.results = {"alice": 0}
    assert node.push_ids("alice", "1") == [3]
    assert node.taken() == []


def test_what_was_not_delivered_is_tried_afresh() -> None:
    for refused in (0, Refusal.NO_DEVICE, Refusal.OVERLOADED):
        node = Node()
        node.results = {"alice": refused}
        assert node.push_ids("alice", "1") == [refused]
        node.results = {}
        assert node.push_ids("alice", "1") == [1]
        assert node.taken() == [("alice", "1")] * 2


def test_user_id_and_device_are_what_makes_a_message() -> None:
    node = Node()
    messages: list[Message] = [
        ("alice", "1", None),
        ("alice", "2", None),
        ("bob", "1", None),
        ("1", "alice", None),
        ("alice", "1", "phone"),
        ("alice", "1", "desk"),
        ("alice1", "", None),
    ]
    for message in messages:
        node.push(message)
    assert len(node.taken()) == len(messages)
    assert node.push(*messages) == [1] * len(messages)
    assert node.taken() == []


def test_without_an_id_nothing_is_a_repeat() -> None:
    node = Node()
    for _ in range(2):
        assert node.push(("alice", None, None), ("alice", None, None)) == [1, 1]
    assert len(node.taken()) == 4


def test_new_messages_of_a_batch_go_out_in_order_between_its_repeats() -> None:
    node = Node()
    node.results = {"bob": 2, "carol": 0}
    assert node.push_ids("bob", "1", "2") == [2, 2]
    node.taken()
    batch: list[Message] = [
        ("alice", "1", None),
        ("bob", "1", None),
        ("alice", None, None),
        ("carol", "1", None),
        ("bob", "2", None),
        ("bob", "3", None),
    ]
    assert node.push(*batch) == [1, 2, 1, 0, 2, 2]
    expected = [("alice", "1"), ("alice", "ours"), ("carol", "1"), ("bob", "3")]
    assert node.taken() == expected


def test_a_repeat_within_its_batch_comes_to_what_the_first_does() -> None:
    node = Node()
    node.results = {"bob": 2, "carol": 0, "dave": Refusal.OVERLOADED}
    batch: list[Message] = [
        ("bob", "1", None),
        ("carol", "1", None),
        ("bob", "1", None),
        ("dave", "1", None),
        ("alice", "1", None),
        ("dave", "1", None),
        ("carol", "1", None),
        ("bob", "1", None),
    ]
    overloaded = Refusal.OVERLOADED
    assert node.push(*batch) == [2, 0, 2, overloaded, 1, overloaded, 0, 2]
    assert node.taken() == [("bob", "1"), ("carol", "1"), ("dave", "1"), ("alice", "1")]
    node.results = {}
    assert node.push(*batch) == [2, 1, 2, 1, 1, 1, 1, 2]
    assert node.taken() == [("carol", "1"), ("dave", "1")]


def test_the_window_is_known_whole_and_at_most_twice_as_much() -> None:
    for batch_size in (1, 3, 7, 10, 25, 40):
        node = Node(window=10)
        ids = [str(number) for number in range(1_000)]
        for start in range(0, len(ids), batch_size):
            node.push_ids("alice", *ids[start : start + batch_size])
        node.taken()
        known = []
        for message_id in reversed(ids):
            node.push_ids("alice", message_id)
            if node.taken():
                break
            known.append(message_id)
        assert 10 <= len(known) <= 20, batch_size


def test_no_batch_makes_it_remember_more_than_twice_the_window() -> None:
    node = Node(window=10)
    node.push_ids("alice", *map(str, range(1_000)))
    node.taken()
    node.push_ids("alice", *map(str, range(980)))
    assert len(node.taken()) == 980


def test_a_repeat_is_known_for_another_window() -> None:
    node = Node(window=10)
    node.push_ids("alice", "kept")
    for number in range(100):
        node.push_ids("alice", str(number))
        node.push_ids("alice", "kept")
    assert node.taken().count(("alice", "kept")) == 1


def test_a_window_of_none_delivers_all() -> None:
    node = Node(window=0)
    for _ in range(2):
        assert node.push_ids("alice", "1", "1") == [1, 1]
    assert len(node.taken()) == 4


def test_without_a_window_the_takers_of_a_part_are_known_all_the_same() -> None:
    node, taker = Node(window=0), FakeConnection()
    node.results = {"alice": Partial(frozenset((taker,)), 1)}
    node.push_ids("alice", "1")
    node.results = {"alice": 2}
    assert node.push_ids("alice", "1") == [2]
    assert node.takers == [frozenset((taker,))]
    node.push_ids("alice", "1")
    assert len(node.takers) == 1, "every connection has it"


def test_a_batch_of_repeats_alone_delivers_nothing() -> None:
    node = Node()
    ids = [str(number) for number in range(50)]
    assert node.push_ids("alice", *ids) == [1] * 50
    node.taken()
    assert node.push_ids("alice", *reversed(ids)) == [1] * 50
    assert node.taken() == []


def test_repeats_of_what_is_still_young_push_nothing_out() -> None:
    node = Node(window=10)
    node.push_ids("alice", *(str(number) for number in range(10)))
    node.push_ids("alice", *(str(number) for number in range(10, 15)))
    node.push_ids("alice", *(str(number) for number in range(10, 16)))
    node.taken()
    node.push_ids("alice", *(str(number) for number in range(6, 16)))
    assert node.taken() == []


def test_a_message_that_was_partly_taken_goes_out_again_without_its_takers() -> None:
    node = Node()
    takers = frozenset((FakeConnection(), FakeConnection()))
    node.results = {"alice": Partial(takers, 1)}
    assert node.push_ids("alice", "1", "2") == [Partial(takers, 1)] * 2
    assert node.takers == []
    node.results = {"alice": 3}
    assert node.push_ids("alice", "1", "3") == [3, 3]
    assert node.takers == [takers]
    node.taken()
    assert node.push_ids("alice", "1", "2") == [3, 3]
    assert node.taken() == [("alice", "2")], "the first is a repeat by now"
    assert node.takers == [takers] * 2


# Connections that resume


class ResumingUser:
    """Alice on one node, with a hub: messages of partition 0, by offset."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.repeats = Repeats(100, unscreened=self.hub.unscreened)

    def connect(self, *, replayed_to: int | None = None) -> FakeConnection:
        """Connect; with a screen where everything before an offset was replayed."""
        connection = FakeConnection()
        if replayed_to is not None:
            connection.screen = Replayed({("push", 0): replayed_to}, {})
        self.hub.add(connection)
        return connection

    def push(self, *offsets: int) -> Results:
        batch = [self._message(offset) for offset in offsets]
        names = {at: self._name(offset) for at, offset in enumerate(offsets)}
        return self.repeats.deliver(batch, names, self.hub.deliver)

    async def push_one(self, offset: int) -> Result:
        """Push a message as to a crowd."""

        async def deliver(takers: Takers) -> Result:
            (result,) = self.hub.deliver([self._message(offset)], {0: takers})
            return result

        return await self.repeats.deliver_one(self._message(offset), self._name(offset), deliver)

    def _message(self, offset: int) -> Addressed:
        position = f"push-0-{offset}"
        delivery = Delivery(b"%d" % offset, message_id=position, position=position)
        return delivery, "alice", None

    def _name(self, offset: int) -> Name:
        return "alice", f"push-0-{offset}", None, None


def test_a_repeat_reaches_a_connection_that_resumed_without_it() -> None:
    alice = ResumingUser()
    dead = alice.connect()
    assert alice.push(5) == [1]
    alice.hub.remove(dead)
    back, bystander = alice.connect(replayed_to=5), alice.connect()
    assert alice.push(5) == [2], "the bystander counts as one that has it"
    assert (back.got, bystander.got) == ([b"5"], [])
    assert alice.push(5, 5) == [2, 2]
    assert back.got == [b"5"]


@pytest.mark.anyio
async def test_a_repeat_for_a_crowd_reaches_a_connection_that_resumed_without_it() -> None:
    alice = ResumingUser()
    dead = alice.connect()
    assert await alice.push_one(5) == 1
    alice.hub.remove(dead)
    back, bystander = alice.connect(replayed_to=5), alice.connect()
    assert await alice.push_one(5) == 2
    assert await alice.push_one(5) == 2
    assert (back.got, bystander.got) == ([b"5"], [])


def test_a_repeat_of_what_was_replayed_reaches_nobody() -> None:
    alice = ResumingUser()
    first = alice.connect()
    assert alice.push(5) == [1]
    back = alice.connect(replayed_to=6)
    assert alice.push(5) == [2]
    assert (first.got, back.got) == ([b"5"], [])


def test_what_is_in_no_log_is_a_repeat_for_resumed_connections_too() -> None:
    alice = ResumingUser()
    batch: list[Addressed] = [(Delivery(b"x", message_id="m"), "alice", None)]
    names: dict[int, Name] = {0: ("alice", "m", None, None)}
    alice.connect()
    assert alice.repeats.deliver(batch, names, alice.hub.deliver) == [1]
    back = alice.connect(replayed_to=0)
    assert alice.repeats.deliver(batch, names, alice.hub.deliver) == [1]
    assert back.got == []


def test_new_messages_around_a_repeat_come_in_their_order_to_a_resumed_connection() -> None:
    alice = ResumingUser()
    dead = alice.connect()
    alice.push(6)
    alice.hub.remove(dead)
    back = alice.connect(replayed_to=5)
    assert alice.push(5, 6, 7) == [1, 1, 1]
    assert back.got == [b"5", b"6", b"7"]


def test_the_next_process_knows_repeats_by_the_hashes_of_one_that_hashes_alike() -> None:
    earlier, later = Node(), Node()
    earlier.push_ids("alice", "m-1", "m-2")
    later.push_ids("alice", "m-3")
    later.repeats.adopt_generations(*earlier.repeats.generations())
    later.push_ids("alice", "m-1", "m-2", "m-3", "m-4")
    assert later.taken() == [("alice", "m-3"), ("alice", "m-4")]


def test_partly_taken_messages_are_told_by_user_with_their_whole_names() -> None:
    repeats, takers = Repeats(10), frozenset[Connection]({FakeConnection()})
    name: Name = ("alice", "m-1", "phone", "orders")
    repeats.adopt_partly_taken(name, takers)
    repeats.adopt_partly_taken(("bob", "m-1", None, None), takers)
    assert list(repeats.partly_taken_of({"alice"})) == [(name, takers)]
    assert repeats.takers(name) == takers
