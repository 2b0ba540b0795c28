"""User → connections: who is here, and who took a message."""

import time
from collections.abc import Callable
from functools import partial

import pytest

from gateway.connections.connection import Connection, State
from gateway.connections.delivery import Delivery, Form
from gateway.connections.gate import Verdict
from gateway.connections.hub import CROWD, Hub, Partial, Refusal, Result, Tally
from gateway.takeover.format import ReplayedRecord
from tests.unit.gateway.fakes import FakeConnection, identity, message


@pytest.fixture
def hub() -> Hub:
    return Hub()


def held(hub: Hub, user: str = "alice", device: str | None = None) -> FakeConnection:
    connection = FakeConnection(identity(user, device))
    hub.add(connection)
    return connection


def in_parts(hub: Hub, user: str) -> Result:
    tally = Tally()
    for _ in hub.deliver_in_parts((message("parts"), user, None), tally, set()):
        pass
    return hub.result(tally, user, None)


def taken(hub: Hub, sent: Delivery, user: str, device: str | None = None) -> Result:
    (result,) = hub.deliver([(sent, user, device)])
    return result


def test_the_first_connection_of_a_user_is_told_from_others(hub: Hub) -> None:
    assert hub.add(FakeConnection())
    assert not hub.add(FakeConnection())
    assert hub.add(FakeConnection(identity("bob")))


def test_the_last_connection_of_a_user_is_told_from_others(hub: Hub) -> None:
    first, second = held(hub), held(hub)
    assert not hub.remove(first)
    assert "alice" in hub
    assert hub.remove(second)
    assert "alice" not in hub


def test_it_counts_connections_and_lists_users(hub: Hub) -> None:
    assert (len(hub), hub.users()) == (0, [])
    connections = [held(hub), held(hub), held(hub, "bob")]
    assert len(hub) == 3
    assert hub.users() == ["alice", "bob"]
    assert list(hub.connections()) == connections
    assert [hub.count(user) for user in ("alice", "bob", "carol")] == [2, 1, 0]
    assert hub.of("alice") == tuple(connections[:2])
    assert hub.of("carol") == ()


def test_a_message_reaches_every_connection_of_its_user_and_no_other(hub: Hub) -> None:
    first, second, other = held(hub), held(hub, device="phone"), held(hub, "bob")
    assert taken(hub, message("one"), "alice") == 2
    assert (first.got, second.got, other.got) == ([b"one"], [b"one"], [])


def test_a_user_who_is_not_here_gets_zero(hub: Hub) -> None:
    held(hub)
    assert taken(hub, message(), "bob") == 0
    assert taken(hub, message(), "bob", "phone") == 0
    assert taken(hub, message(), "ALICE") == 0


def test_a_message_for_one_device_reaches_all_of_its_connections_and_no_other(hub: Hub) -> None:
    phones = [held(hub, device="phone"), held(hub, device="phone")]
    others = [held(hub, device="tablet"), held(hub, device=None)]
    assert taken(hub, message(), "alice", "phone") == 2
    assert all(phone.got for phone in phones)
    assert not any(other.got for other in others)


def test_a_device_that_is_not_here_is_no_absent_user(hub: Hub) -> None:
    held(hub, device="tablet")
    assert taken(hub, message(), "alice", "phone") is Refusal.NO_DEVICE


def test_who_has_no_room_for_a_message_is_told_apart(hub: Hub) -> None:
    slow = held(hub)
    slow.takes = False
    assert taken(hub, message(), "alice") is Refusal.OVERLOADED
    fast = held(hub)
    assert taken(hub, message(), "alice") == Partial(frozenset((fast,)), 1)


def test_who_had_no_room_for_a_message_gets_no_later_one_of_the_batch(hub: Hub) -> None:
    slow, fast, other = held(hub), held(hub), held(hub, "bob")
    batch = [(message(str(number)), user, None) for number in range(6) for user in ("alice", "bob")]
    slow.on_deliver = lambda: setattr(slow, "takes", len(slow.got) != 2)
    full: set[Connection] = set()
    results = hub.deliver(batch[:8], full=full)
    slow.on_deliver, slow.takes = lambda: None, True
    results += hub.deliver(batch[8:], full=full)
    partial = Partial(frozenset((fast,)), 1)
    assert results == [2, 1] * 2 + [partial, 1] * 4
    assert slow.got == [b"0", b"1"]
    assert fast.got == other.got == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert full == {slow}
    took = {number - 4: frozenset((fast,)) for number in range(4, 12, 2)}
    assert hub.deliver(batch[4:], took) == [2, 1] * 4
    assert slow.got == fast.got


def test_takers_that_are_gone_count_and_newcomers_get_the_message(hub: Hub) -> None:
    gone, new = held(hub), held(hub)
    hub.remove(gone)
    assert hub.deliver([(message("one"), "alice", None)], {0: frozenset((gone,))}) == [2]
    assert (gone.got, new.got) == ([], [b"one"])
    hub.remove(new)
    assert hub.deliver([(message("one"), "alice", None)], {0: frozenset((gone, new))}) == [2]


def test_short_of_memory_only_a_client_that_reads_gets_messages(hub: Hub) -> None:
    reading, stalled = held(hub), held(hub)
    stalled.waiting = hub.is_short_of_memory = True
    for text in ("one", "two"):
        assert taken(hub, message(text), "alice") == Partial(frozenset({reading}), 1)
    assert (reading.got, stalled.got) == ([b"one", b"two"], [])
    hub.remove(reading)
    assert taken(hub, message("three"), "alice") is Refusal.OVERLOADED
    hub.is_short_of_memory = False
    assert taken(hub, message("four"), "alice") == 1
    assert stalled.got == [b"four"]


def test_a_batch_has_a_result_for_each_message_in_its_order(hub: Hub) -> None:
    phone, tablet = held(hub, device="phone"), held(hub, device="tablet")
    slow = held(hub, "carol")
    slow.takes = False
    one, two = message("one"), message("two")
    assert hub.deliver(
        [
            (one, "alice", None),
            (one, "bob", None),
            (two, "alice", "phone"),
            (two, "alice", "watch"),
            (one, "carol", None),
        ]
    ) == [2, 0, 1, Refusal.NO_DEVICE, Refusal.OVERLOADED]
    assert (phone.got, tablet.got) == ([b"one", b"two"], [b"one"])


def test_a_connection_that_is_found_to_be_gone_is_no_longer_here(hub: Hub) -> None:
    gone = held(hub)
    gone.takes, gone.on_deliver = False, partial(hub.remove, gone)
    assert taken(hub, message(), "alice") == 0


@pytest.mark.parametrize("others", [2, 3 * CROWD])
def test_a_connection_that_fails_ends_alone_and_the_others_get_the_message(
    hub: Hub, others: int
) -> None:
    failing = held(hub)

    def fail() -> None:
        raise RuntimeError("a fault of its own")

    failing.on_deliver = fail
    connections = [held(hub) for _ in range(others)]
    assert hub.deliver([(message(), "alice", None), (message(), "bob", None)]) == [others, 0]
    assert failing.state is State.CLOSED
    assert in_parts(hub, "alice") == others
    assert all(len(connection.got) == 2 for connection in connections)


def test_connections_that_leave_while_they_are_delivered_to_disturb_nobody(hub: Hub) -> None:
    connections = [held(hub) for _ in range(3)]
    for connection in connections:
        connection.on_deliver = partial(hub.remove, connection)
    assert taken(hub, message(), "alice") == 3
    assert "alice" not in hub


@pytest.mark.parametrize("count", [10, 10 * CROWD])
def test_connections_may_leave_while_all_are_gone_through(hub: Hub, count: int) -> None:
    for number in range(count):
        held(hub, f"u{number % 3}")
    for connection in hub.connections():
        hub.remove(connection)
    assert len(hub) == 0


# Users with many connections


def test_a_user_is_a_crowd_from_so_many_connections_on_and_until_the_last_is_gone(
    hub: Hub,
) -> None:
    connections = [held(hub) for _ in range(CROWD)]
    assert hub.crowds == set()
    connections.append(held(hub))
    assert hub.crowds == {"alice"}
    assert hub.of("alice") == tuple(connections)
    for number, connection in enumerate(connections):
        assert hub.crowds == {"alice"}
        assert hub.count("alice") == len(connections) - number
        assert hub.remove(connection) == (connection is connections[-1])
    assert hub.crowds == set()
    assert "alice" not in hub


def test_a_message_reaches_a_crowd_as_it_reaches_others(hub: Hub) -> None:
    phones = [held(hub, device="phone") for _ in range(3 * CROWD)]
    others = [held(hub, device="tablet") for _ in range(CROWD)]
    others[0].takes = False
    assert taken(hub, message("one"), "alice", "phone") == len(phones)
    takers = frozenset((*phones, *others[1:]))
    assert taken(hub, message("two"), "alice") == Partial(takers, 1)
    assert taken(hub, message(), "alice", "watch") is Refusal.NO_DEVICE
    assert all(phone.got == [b"one", b"two"] for phone in phones)
    assert all(other.got == [b"two"] for other in others[1:])


@pytest.mark.parametrize("device", [None, "phone"])
def test_in_parts_a_message_reaches_each_connection_that_was_there_and_is(
    hub: Hub, device: str | None
) -> None:
    connections = [held(hub, device="phone") for _ in range(1_000)]
    tablet = held(hub, device="tablet")
    late: list[FakeConnection] = []
    tally, parts = Tally(), 0
    for _ in hub.deliver_in_parts((message("one"), "alice", device), tally, set()):
        parts += 1
        if parts == 1:
            gone, late = connections.pop(), [held(hub)]
            hub.remove(gone)
            gone.gone()
    assert parts > 5
    assert gone.got == [], "after its goodbye a connection gets nothing"
    assert hub.result(tally, "alice", device) == len(connections) + (device is None)
    assert all(connection.got == [b"one"] for connection in connections)
    assert tablet.got == ([b"one"] if device is None else [])
    assert late[0].got == []


def test_what_many_connections_of_one_user_cost_does_not_grow_with_their_square(hub: Hub) -> None:
    # The square of 30,000 takes a copy of all the user's connections, for each of them: over 5 s.
    began = time.process_time()
    connections = [held(hub) for _ in range(30_000)]
    for connection in connections:
        hub.remove(connection)
    assert time.process_time() - began < 2.0
    assert len(hub) == 0


# Screens


class FakeScreen:
    """A screen that says what a test wants, and notes what its connection took."""

    def __init__(self, verdict: Verdict = Verdict.PASSES) -> None:
        self.verdict = verdict
        self.met: list[str] = []
        self.took: list[str] = []

    def meet(self, delivery: Delivery) -> Verdict:
        self.met.append(delivery.id)
        return self.verdict

    def encoded(self, delivery: Delivery, form: Form) -> bytes:
        return b"own " + delivery.encoded(form)

    def passed(self, delivery: Delivery) -> None:
        self.took.append(delivery.id)

    def cursor(self, as_of_ms: int) -> str:
        return str(as_of_ms)

    def record(self) -> ReplayedRecord:
        return ReplayedRecord()


def screened(hub: Hub, screen: FakeScreen, user: str = "alice") -> FakeConnection:
    connection = FakeConnection(identity(user))
    connection.screen = screen
    hub.add(connection)
    return connection


@pytest.fixture(params=["at once", "in parts"])
def deliver(request: pytest.FixtureRequest, hub: Hub) -> Callable[[str], Result]:
    """Give what delivers one message to alice."""
    if request.param == "at once":
        return lambda text: taken(hub, message(text, text), "alice")

    def through_parts(text: str) -> Result:
        tally = Tally()
        for _ in hub.deliver_in_parts((message(text, text), "alice", None), tally, set()):
            pass
        return hub.result(tally, "alice", None)

    return through_parts


def test_what_passes_a_screen_is_encoded_by_it_and_noted(
    hub: Hub, deliver: Callable[[str], Result]
) -> None:
    screen = FakeScreen()
    behind, beside = screened(hub, screen), held(hub)
    assert deliver("one") == 2
    assert (behind.got, beside.got) == ([b"own one"], [b"one"])
    assert (screen.met, screen.took) == (["one"], ["one"])


def test_a_message_that_waits_behind_a_screen_is_taken_and_not_written(
    hub: Hub, deliver: Callable[[str], Result]
) -> None:
    screen = FakeScreen(Verdict.HAS)
    behind = screened(hub, screen)
    assert deliver("one") == 1
    assert (behind.got, screen.took) == ([], [])


def test_a_screen_without_room_refuses_as_a_full_connection_does(
    hub: Hub, deliver: Callable[[str], Result]
) -> None:
    screened(hub, FakeScreen(Verdict.NO_ROOM))
    assert deliver("one") is Refusal.OVERLOADED
    beside = held(hub)
    assert deliver("one") == Partial(frozenset((beside,)), 1)


def test_behind_a_screen_without_room_no_later_message_of_the_batch_goes(hub: Hub) -> None:
    screen = FakeScreen(Verdict.NO_ROOM)
    behind = screened(hub, screen)
    full: set[Connection] = set()
    assert hub.deliver([(message(), "alice", None)], full=full) == [Refusal.OVERLOADED]
    screen.verdict = Verdict.PASSES
    assert hub.deliver([(message(), "alice", None)], full=full) == [Refusal.OVERLOADED]
    assert behind.got == []
    assert hub.deliver([(message(), "alice", None)]) == [1]


def test_a_write_that_is_refused_moves_no_position(
    hub: Hub, deliver: Callable[[str], Result]
) -> None:
    screen = FakeScreen()
    behind = screened(hub, screen)
    behind.takes = False
    assert deliver("one") is Refusal.OVERLOADED
    assert screen.took == []
    assert behind.cursor is None


def test_a_batch_for_users_with_and_without_screens_keeps_each_users_order(hub: Hub) -> None:
    behind, other = screened(hub, FakeScreen()), held(hub, "bob")
    batch = [
        (message(str(number)), user, None) for number in range(3) for user in ("alice", "bob", "c")
    ]
    assert hub.deliver(batch) == [1, 1, 0] * 3
    assert behind.got == [b"own 0", b"own 1", b"own 2"]
    assert other.got == [b"0", b"1", b"2"]


def test_only_messages_for_its_device_come_to_a_screen(hub: Hub) -> None:
    screen = FakeScreen()
    screened(hub, screen)
    held(hub, device="phone")
    assert taken(hub, message(), "alice", "phone") == 1
    assert screen.met == []


def test_users_are_known_for_as_long_as_a_connection_of_theirs_has_a_screen(hub: Hub) -> None:
    first, second, plain = screened(hub, FakeScreen()), screened(hub, FakeScreen()), held(hub)
    assert hub.unscreened("alice") == frozenset((plain,))
    assert hub.unscreened("bob") is None
    hub.put_screen(first, FakeScreen())
    hub.put_screen(second, None)
    assert hub.unscreened("alice") == frozenset((second, plain))
    hub.remove(first)
    assert hub.unscreened("alice") is None
    hub.put_screen(plain, FakeScreen())
    assert hub.unscreened("alice") == frozenset((second,))
    hub.put_screen(plain, None)
    assert hub.screened == {}


def test_a_screen_of_a_connection_that_has_ended_counts_no_more(hub: Hub) -> None:
    ended = screened(hub, FakeScreen())
    held(hub)
    ended.state = State.CLOSED
    hub.remove(ended)
    hub.put_screen(ended, FakeScreen())
    hub.put_screen(ended, None)
    assert hub.screened == {}


# Cursors


def placed(number: int) -> Delivery:
    return Delivery(b"x", message_id="m", position=f"push-0-{number}", as_of="k")


def test_a_connection_keeps_the_cursor_of_its_last_message(hub: Hub) -> None:
    connection, other = held(hub), held(hub, "bob")
    hub.deliver([(placed(1), "alice", None), (placed(2), "alice", None)])
    assert (connection.cursor, other.cursor) == ("k,push-0-2", None)


def test_a_cursor_is_never_beyond_a_message_that_had_no_room(hub: Hub) -> None:
    connection = held(hub)
    hub.deliver([(placed(1), "alice", None)])
    connection.on_deliver = lambda: setattr(connection, "takes", len(connection.got) != 2)
    hub.deliver([(placed(number), "alice", None) for number in (2, 3, 4)])
    assert len(connection.got) == 2
    assert connection.cursor in (None, "k,push-0-1", "k,push-0-2")
