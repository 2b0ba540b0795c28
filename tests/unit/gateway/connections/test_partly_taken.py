"""Messages that some connections have taken: for how many of them that is remembered."""

from prometheus_client import Counter, Gauge

from gateway import metrics
from gateway.connections.connection import Connection
from gateway.connections.partly_taken import NO_TAKERS, Name, PartlyTaken, Takers
from tests.unit.gateway.fakes import FakeConnection


def value(metric: Counter | Gauge) -> float:
    (family,) = metric.collect()
    return family.samples[0].value


def name(number: int) -> Name:
    return ("alice", str(number), None, None)


def hashes(*numbers: int) -> list[int]:
    return [hash(name(number)) for number in numbers]


def remember(partly_taken: PartlyTaken, number: int, some: Takers) -> None:
    partly_taken.remember(name(number), some)


def takers_of(partly_taken: PartlyTaken, number: int) -> Takers:
    return partly_taken.takers(hash(name(number)))


def takers(count: int) -> frozenset[Connection]:
    return frozenset(FakeConnection() for _ in range(count))


def test_takers_are_remembered_until_all_have_the_message() -> None:
    partly_taken, some = PartlyTaken(), takers(2)
    assert takers_of(partly_taken, 1) == NO_TAKERS
    remember(partly_taken, 1, some)
    assert takers_of(partly_taken, 1) == some
    assert partly_taken.takers(None) == NO_TAKERS
    assert partly_taken.has_none_of(hashes(2, 3))
    assert not partly_taken.has_none_of(hashes(3, 1))
    partly_taken.forget(hashes(1, 2))
    partly_taken.forget(hashes(1))
    assert takers_of(partly_taken, 1) == NO_TAKERS
    assert len(partly_taken) == 0


def test_equal_takers_of_a_burst_are_one_set() -> None:
    partly_taken, some = PartlyTaken(), takers(3)
    remember(partly_taken, 1, some)
    remember(partly_taken, 2, frozenset(list(some)))
    assert takers_of(partly_taken, 1) is takers_of(partly_taken, 2)


def test_beyond_its_places_the_oldest_are_forgotten_and_counted() -> None:
    partly_taken = PartlyTaken(most_places=100)  # of one taker: 20 messages
    evicted = value(metrics.PARTLY_TAKEN_EVICTED)
    for number in range(50):
        remember(partly_taken, number, takers(1))
        assert value(metrics.PARTLY_TAKEN) == len(partly_taken)
    assert [number for number in range(50) if takers_of(partly_taken, number)] == list(
        range(30, 50)
    )
    assert value(metrics.PARTLY_TAKEN_EVICTED) - evicted == 30
    remember(partly_taken, 50, takers(91))
    assert [number for number in range(51) if takers_of(partly_taken, number)] == [49, 50]
    remember(partly_taken, 51, takers(1_000))
    assert len(partly_taken) == 0
    assert value(metrics.PARTLY_TAKEN) == 0


def test_messages_that_come_again_and_again_take_their_places_once() -> None:
    partly_taken = PartlyTaken(most_places=20)
    for _ in range(100):
        for number in range(4):
            remember(partly_taken, number, takers(1))
    assert all(takers_of(partly_taken, number) for number in range(4))
    partly_taken.forget(hashes(*range(4)))
    for number in range(4):
        remember(partly_taken, number, takers(1))
    assert len(partly_taken) == 4
