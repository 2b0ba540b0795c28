"""Users with messages that waited lately, for marks.

A message that waits, for a silent gateway or for room, holds back the offset before which all
messages are settled, often for minutes. Clients of the message's user are asked for from that
offset on. For clients of other users the message does not count.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from processor import metrics

#: Noted users at most: some 10 MB. Beyond, every user counts.
MOST_USERS: Final = 100_000
#: The pause between two searches for users to forget.
_PRUNE_MS: Final = 10_000


class Waited:
    """The users with messages that waited, as far back as `keep_ms`; times as in marks.py."""

    def __init__(self, keep_ms: int) -> None:
        self._keep_ms = keep_ms
        self._last_ms: dict[str, int] = {}  # by user: the last note with the user
        self._all_until_ms = -1  # every user counts up to here
        self._times_ms: list[int] = []  # of notes
        self._pruned_ms = 0

    def note(self, now_ms: int, users: Iterable[str]) -> None:
        """Note the users with messages that wait now. Called whenever marks are made."""
        self._times_ms.append(now_ms)
        if now_ms - self._pruned_ms >= _PRUNE_MS:
            self._pruned_ms = now_ms
            self._prune(now_ms - self._keep_ms)
        for user in users:
            if len(self._last_ms) >= MOST_USERS and user not in self._last_ms:
                self._all_until_ms = now_ms
                metrics.WAITED_OVERFLOWS.inc()
                return
            self._last_ms[user] = now_ms

    def since(self, user: str, time_ms: int) -> bool:
        """Whether a message of the user may have waited at a time, or later."""
        return max(self._last_ms.get(user, -1), self._all_until_ms) >= time_ms

    def _prune(self, bound_ms: int) -> None:
        """Forget users without a message in the last note before a time, or later.

        The last note before the bound counts as the last mark does: after an outage both may be
        much older than the bound.
        """
        del self._times_ms[: max(0, bisect_right(self._times_ms, bound_ms) - 1)]
        oldest_ms = self._times_ms[0]
        self._last_ms = {user: ms for user, ms in self._last_ms.items() if ms >= oldest_ms}
