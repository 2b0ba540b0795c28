"""Whether a user who is not found in the registry is offline or unknown.

Usually such a user is offline: every connected user has an entry. But Redis can lose entries: it
was emptied, restored or replaced, or a failover lost the last writes. Or Redis refuses writes:
then the entries of users who connect are missing. Each gateway notices the loss
at its next heartbeat and writes the entries of all of its users again. Until every gateway has done
so, a user who is not found may be connected: the user is unknown.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

#: A generation marker, "<server> <made>": the run id of the Redis server that holds the keys, and
#: when the marker was made, in epoch microseconds by that server's clock. Each heartbeat of a
#: gateway makes the marker anew where it is absent, of another server (after a failover, or a
#: restore from a snapshot; not after its slot moved), or from the future (generations.py). So a
#: reader needs only the time: after any loss that a gateway has noticed, the marker is young.
_MARKER = re.compile(rb"[^ ]{1,64} ([0-9]{1,16})")


class Doubt:
    """Judges whether the registry may lack entries of connected users, by three signs.

    `registration_seconds` is the most that every gateway takes to notice a loss and to write the
    entries of all of its users again (`Timings` in directory.py). For so long the registry is
    doubted after each sign, and a user who is not found is unknown:

    - `may_lack_entries`: the generation marker, read with the entries, is absent or young. The
      marker is in the registry, so a process that started after the loss sees the sign too. The
      doubt lasts until the marker is `registration_seconds` old.
    - `in_outage`, while the registry refuses writes (`RedisRegistry.probe` tries), and for
      `registration_seconds` afterwards.
    - `in_outage`: the registry does not answer, or did not a moment ago. The outage may have been a
      failover, whose new master lacks the last writes and whose marker no gateway has made anew
      yet. Only a process that saw the outage has this sign; a process that starts just then may
      call a connected user offline until the next heartbeat of a gateway. The doubt lasts until
      `registration_seconds` after the first answer.

    The caller (RedisRegistry.lookup) doubts an answer where one of them is true.
    """

    def __init__(
        self, registration_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is this process's monotonic clock, in seconds."""
        self._registration_seconds = registration_seconds
        self._clock = clock
        self._silent = False  # whether the registry does not answer
        self._refuses = False  # whether the registry refuses writes
        #: When the doubt after the latest outage ends, by `clock`.
        self._doubt_ends_at = -math.inf
        #: The registry's clock minus `clock`, in seconds; None before the registry's clock is read.
        self._clock_offset: float | None = None

    @property
    def knows_the_time(self) -> bool:
        """Whether the registry's clock has been read; before, no marker's age can be told."""
        return self._clock_offset is not None

    @property
    def in_outage(self) -> bool:
        """Whether the registry is silent or refuses writes, or did `registration_seconds` ago."""
        return self._silent or self._refuses or self._clock() < self._doubt_ends_at

    def failed(self) -> None:
        """Note that the registry did not answer: an outage begins, or goes on."""
        self._silent = True

    def answered(self) -> None:
        """Note that the registry answered. The first answer after an outage ends the outage."""
        if self._silent:
            self._silent = False
            self._doubt_ends_at = self._clock() + self._registration_seconds

    def refused(self) -> None:
        """Note that the registry refuses writes: answers to reads don't end this outage."""
        self._refuses = True

    def accepted(self) -> None:
        """Note that the registry takes writes. The first write that is taken ends the outage."""
        if self._refuses:
            self._refuses = False
            self._doubt_ends_at = self._clock() + self._registration_seconds

    def set_time(self, epoch_seconds: float) -> None:
        """Note the present time of the registry's clock, in epoch seconds.

        Called with every refresh of the node table, about once a second. A reply that was under way
        for some time makes markers look younger than they are, which only prolongs the doubt.
        """
        self._clock_offset = epoch_seconds - self._clock()

    def may_lack_entries(self, marker: bytes | None) -> bool:
        """Whether entries may be missing among those read together with `marker`.

        - No marker, or an invalid one: the entries were lost, and no gateway has noticed yet.
        - A marker younger than `registration_seconds`: a gateway noticed a loss and made the marker
          anew, and other gateways may not have written the entries of their users again.
        - A marker from the future counts as young: the server's clock was set back, or a slower
          clock took over. The next heartbeat of a gateway makes the marker anew.
        - An older marker: no entry is missing, as far as this sign can tell.

        Always true before the registry's clock has been read.
        """
        match = _MARKER.fullmatch(marker or b"")
        if match is None or self._clock_offset is None:
            return True
        made_seconds = int(match[1]) / 1e6
        age_seconds = self._clock() + self._clock_offset - made_seconds
        return age_seconds < self._registration_seconds
