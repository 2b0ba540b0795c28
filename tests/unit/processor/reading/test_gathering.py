"""When a broker is to wait for a few records, and for how many bytes."""

from __future__ import annotations

from processor.reading.gathering import Gathering


def at_rate(
    gathering: Gathering, since: float, *, rate: float, size: int = 200, brokers: int = 1
) -> tuple[int, int]:
    """Take records at a rate for a second, by twenties of a second; return the last bounds."""
    for step in range(1, 21):
        records = int(rate / 20)
        gathering.fetched(records * size)
        gathering.took(records)
        bounds = gathering.bounds(since + step / 20, brokers=brokers)
    return bounds


def test_at_a_low_rate_every_record_comes_by_itself() -> None:
    assert at_rate(Gathering(0.0), 0.0, rate=500) == (0, 0)


def test_at_a_higher_rate_a_few_records_are_gathered_for_a_millisecond() -> None:
    assert at_rate(Gathering(0.0), 0.0, rate=2_000) == (6 * 200, 2)


def test_the_bytes_follow_the_size_of_the_records() -> None:
    assert at_rate(Gathering(0.0), 0.0, rate=2_000, size=10_000) == (60_000, 2)


def test_when_the_rate_falls_records_come_by_themselves_again() -> None:
    gathering = Gathering(0.0)
    at_rate(gathering, 0.0, rate=2_000)
    assert at_rate(gathering, 1.0, rate=100) == (0, 0)


def test_what_comes_after_a_silence_comes_at_once() -> None:
    gathering = Gathering(0.0)
    at_rate(gathering, 0.0, rate=2_000)
    gathering.fetched(200)
    gathering.took(1)
    assert gathering.bounds(10.0, brokers=1) == (0, 0)


def test_the_rate_is_that_of_each_broker() -> None:
    assert at_rate(Gathering(0.0), 0.0, rate=2_000, brokers=3) == (6 * 200, 2)
    assert at_rate(Gathering(0.0), 0.0, rate=2_000, brokers=4) == (0, 0)
