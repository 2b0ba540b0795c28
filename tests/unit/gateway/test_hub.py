"""User → connections: who is here, and who took a message."""

from functools import partial

import pytest

from gateway.hub import Hub, Refusal
from tests.unit.gateway.fakes import FakeConnection, identity, message


@pytest.fixture
def hub() -> Hub:
    return Hub()


def held(hub: Hub, user: str = "alice", device: str | None = None) -> FakeConnection:
    connection = FakeConnection(identity(user, device))
    hub.add(connection)
    return connection


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
    sent = message()
    assert hub.deliver(sent, user="alice", device=None) == 2
    assert (first.got, second.got, other.got) == ([sent], [sent], [])


def test_a_user_who_is_not_here_gets_zero(hub: Hub) -> None:
    held(hub)
    assert hub.deliver(message(), user="bob", device=None) == 0
    assert hub.deliver(message(), user="bob", device="phone") == 0
    assert hub.deliver(message(), user="ALICE", device=None) == 0


def test_a_message_for_one_device_reaches_all_of_its_connections_and_no_other(hub: Hub) -> None:
    phones = [held(hub, device="phone"), held(hub, device="phone")]
    others = [held(hub, device="tablet"), held(hub, device=None)]
    assert hub.deliver(message(), user="alice", device="phone") == 2
    assert all(phone.got for phone in phones)
    assert not any(other.got for other in others)


def test_a_device_that_is_not_here_is_no_absent_user(hub: Hub) -> None:
    held(hub, device="tablet")
    assert hub.deliver(message(), user="alice", device="phone") is Refusal.NO_DEVICE


def test_who_can_not_take_a_message_does_not_count(hub: Hub) -> None:
    slow = held(hub)
    slow.takes = False
    assert hub.deliver(message(), user="alice", device=None) is Refusal.OVERLOADED
    held(hub)
    assert hub.deliver(message(), user="alice", device=None) == 1


def test_connections_that_leave_while_they_are_delivered_to_disturb_nobody(hub: Hub) -> None:
    connections = [held(hub) for _ in range(3)]
    for connection in connections:
        connection.on_deliver = partial(hub.remove, connection)
    assert hub.deliver(message(), user="alice", device=None) == 3
    assert "alice" not in hub


def test_connections_may_leave_while_all_are_gone_through(hub: Hub) -> None:
    for number in range(10):
        held(hub, f"u{number % 3}")
    for connection in hub.connections():
        hub.remove(connection)
    assert len(hub) == 0
