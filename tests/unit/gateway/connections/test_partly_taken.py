"""Messages that some connections have taken: for how many of them that is remembered."""

from prometheus_client import Counter, Gauge

from gateway import metrics
from gateway.connections.connection import Connection
from gateway.connections.partly_taken import NO_TAKERS, PartlyTaken
from tests.unit.gateway.fakes import FakeConnection


def value(metric: Counter | Gauge) -> float:
    (family,) = metric.collect()
    return family.samples[0].value


def takers(count: int) -> frozenset[Connection]:
    return frozenset(FakeConnection() for _ in range(count))


def test_takers_are_remembered_until_all_have_the_message() -> None:
    partly_taken, some = PartlyTaken(), takers(2)
    assert partly_taken.takers(1) == NO_TAKERS
    partly_taken.remember(1, some)
    assert partly_taken.takers(1) == some
    assert partly_taken.takers(None) == NO_TAKERS
    assert partly_taken.has_none_of([2, 3])
    assert not partly_taken.has_none_of([3, 1])
    partly_taken.forget([1, 2])
    partly_taken.forget([1])
    assert partly_taken.takers(1) == NO_TAKERS
    assert len(partly_taken) == 0


def test_equal_takers_of_a_burst_are_one_set() -> None:
    partly_taken, some = PartlyTaken(), takers(3)
    partly_taken.remember(1, some)
    partly_taken.remember(2, frozenset(list(some)))
    assert partly_taken.takers(1) is partly_taken.takers(2)


def test_beyond_its_places_the_oldest_are_forgotten_and_counted() -> None:
    partly_taken = PartlyTaken(most_places=100)  # of one taker: 20 messages
    evicted = value(metrics.PARTLY_TAKEN_EVICTED)
    for name in range(50):
        partly_taken.remember(name, takers(1))
        assert value(metrics.PARTLY_TAKEN) == len(partly_taken)
    assert [name for name in range(50) if partly_taken.takers(name)] == list(range(30, 50))
    assert value(metrics.PARTLY_TAKEN_EVICTED) - evicted == 30
    partly_taken.remember(50, takers(91))
    assert [name for name in range(51) if partly_taken.takers(name)] == [49, 50]
    partly_taken.remember(51, takers(1_000))
    assert len(partly_taken) == 0
    assert value(metrics.PARTLY_TAKEN) == 0


def test_messages_that_come_again_and_again_take_their_places_once() -> None:
    partly_taken = PartlyTaken(most_places=20)
    for _ in range(100):
        for name in range(4):
            partly_taken.remember(name, takers(1))
    assert all(partly_taken.takers(name) for name in range(4))
    partly_taken.forget(range(4))
    for name in range(4):
        partly_taken.remember(name, takers(1))
    assert len(partly_taken) == 4
