"""When a user whom no live node holds is offline, and when that can't be known."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

#: "<server> <made>": who holds the keys, and since when, by its own clock, epoch microseconds.
_MARKER = re.compile(rb"[^ ]{1,64} ([0-9]{1,16})")


class Doubt:
    """Says whether the registry may lack users who are connected.

    It may for `registration_seconds` (what every gateway needs to write all of its users again)
    after it was emptied or replaced, which its marker tells even to who was not there, and after
    it did not answer, which may have been a failover that lost the last writes.
    """

    def __init__(
        self, registration_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take `clock` for the time that passes between two readings of the registry's clock."""
        self._registration_seconds = registration_seconds
        self._clock = clock
        self._until = -math.inf
        self._offset: float | None = None

    @property
    def knows_the_time(self) -> bool:
        """Whether the registry's clock has been read; a marker means nothing before."""
        return self._offset is not None

    @property
    def after_outage(self) -> bool:
        """Whether the registry does not answer, or did not until a moment ago."""
        return self._clock() < self._until

    def failed(self) -> None:
        """Note that the registry did not answer."""
        self._until = math.inf

    def answered(self) -> None:
        """Note that it did."""
        if self._until == math.inf:
            self._until = self._clock() + self._registration_seconds

    def time_is(self, epoch_seconds: float) -> None:
        """Note what the registry's clock says now."""
        self._offset = epoch_seconds - self._clock()

    def covers(self, marker: bytes | None) -> bool:
        """Whether keys that were read together with this marker may lack some that belong there.

        No marker: they were lost, and no gateway has noticed. A young one: some may not yet have
        written theirs again. One from the future is young: a clock was set back, and a gateway's
        next heartbeat makes the marker anew.
        """
        made = _MARKER.fullmatch(marker or b"")
        if made is None or self._offset is None:
            return True
        age_seconds = self._clock() + self._offset - int(made[1]) / 1e6
        return age_seconds < self._registration_seconds
