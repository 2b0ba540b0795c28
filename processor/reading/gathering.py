"""How long a broker holds a fetch, so that one answer has several records.

A fetch, with the look-up and the batch behind it, costs more than its records: a bare consumer
takes 117 µs of CPU a record at 2,000 records a second, and 64 where records are gathered. At a low
rate the broker answers with every record by itself, as soon as it is there. At a higher rate the
broker waits until a few records are there, for two milliseconds at most.
"""

from __future__ import annotations

from typing import Final

#: From so many records a second and broker on, records are gathered: so many, for so long at most.
#: Below, the wait is hardly longer than the time between two records, and makes fetches. At 2,000
#: records a second two milliseconds take 0.86 × the CPU of one, with a median that is 0.4 ms longer
#: (2026-11-29, three pairs).
_GATHERED_RATE: Final = 600.0
_ENOUGH_RECORDS: Final = 6
_WAIT_MS: Final = 2
#: The rate, and the size of a record, are those of such a time.
_WINDOW_SECONDS: Final = 0.1


class Gathering:
    """Whether records are gathered, by the rate at which the consumer takes them."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._records = 0
        self._bytes = 0
        self._least_bytes = 0

    def fetched(self, size: int) -> None:
        """Count bytes of records that a broker has answered."""
        self._bytes += size

    def took(self, records: int) -> None:
        """Count records that the consumer has taken."""
        self._records += records

    def bounds(self, now: float, *, brokers: int) -> tuple[int, int]:
        """Return the least bytes of the next fetch, and for how many ms a broker waits for them.

        Records come from so many brokers. Both are 0 where records are not gathered.
        """
        elapsed = now - self._since
        if elapsed >= _WINDOW_SECONDS:
            gathers = self._records / elapsed >= _GATHERED_RATE * brokers
            self._least_bytes = _ENOUGH_RECORDS * self._bytes // self._records if gathers else 0
            self._since, self._records, self._bytes = now, 0, 0
        return (self._least_bytes, _WAIT_MS) if self._least_bytes else (0, 0)
