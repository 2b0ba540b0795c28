"""The registry's clock between two readings: behind by the answer's way at most, never ahead."""

from __future__ import annotations

from registry.clock import RegistryClock


def test_before_a_reading_there_is_no_time() -> None:
    assert RegistryClock().now_ms(at=12.0) is None


def test_it_goes_on_by_the_monotonic_clock() -> None:
    clock = RegistryClock()
    clock.set(1_000_000, at=50.0)
    assert clock.now_ms(at=50.0) == 1_000_000
    assert clock.now_ms(at=62.3459) == 1_012_345
    clock.set(900_000, at=70.0)  # another server's clock
    assert clock.now_ms(at=71.0) == 901_000


def test_a_time_just_before_the_reading_is_behind_it() -> None:
    clock = RegistryClock()
    clock.set(1_000_000, at=50.0)
    assert clock.now_ms(at=49.5) == 999_500
