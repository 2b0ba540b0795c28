"""Messages that some of a user's connections have taken, and others had no room for.

A processor sends such a message again, under the same name. The connections that have the message
do not get the message twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from gateway import metrics
from gateway.connections.connection import Connection

#: Connections that have taken a message.
Takers = frozenset[Connection]
NO_TAKERS: Final[Takers] = frozenset()
#: The most places of all messages together: some 24 MB, where no two messages have equal takers.
#: Of a user's messages that wait, 4,096 at most are here, give or take a batch: a processor lets no
#: connection get further ahead (processor/sending/lines.py). So these are ten users at least.
MOST_PLACES: Final = 262_144
#: A message takes so many places, and one more for each of its takers.
_PLACES_A_MESSAGE: Final = 4


class PartlyTaken:
    """The takers of partly taken messages, by the hashes of the messages' names; see Repeats.

    Where the places don't suffice, the oldest messages are forgotten, and counted: every connection
    of the user gets such a message when it comes again. Connections that have ended stay among the
    takers: the result of a message never counts fewer takers than before.
    """

    __slots__ = ("_latest_takers", "_most_places", "_places", "_takers")

    def __init__(self, *, most_places: int = MOST_PLACES) -> None:
        self._most_places = most_places
        self._places = 0
        # Ordered, since the oldest key of a dict is slow to find behind deleted keys.
        self._takers: OrderedDict[int, Takers] = OrderedDict()
        self._latest_takers = NO_TAKERS

    def __len__(self) -> int:
        return len(self._takers)

    def has_none_of(self, names: Iterable[int]) -> bool:
        """Whether no message of `names` is here."""
        return not self._takers or self._takers.keys().isdisjoint(names)

    def takers(self, name: int | None) -> Takers:
        """Return the connections that have taken a message; none where it is not here."""
        return NO_TAKERS if name is None else self._takers.get(name, NO_TAKERS)

    def remember(self, name: int, takers: Takers) -> None:
        """Remember the takers of a message, in place of the takers that it had."""
        self.forget((name,))
        # The messages of a burst mostly have equal takers, which need one set.
        if takers == self._latest_takers:
            takers = self._latest_takers
        self._latest_takers = self._takers[name] = takers
        self._places += _PLACES_A_MESSAGE + len(takers)
        while self._places > self._most_places:
            _, oldest_takers = self._takers.popitem(last=False)
            self._places -= _PLACES_A_MESSAGE + len(oldest_takers)
            metrics.PARTLY_TAKEN_EVICTED.inc()
        metrics.PARTLY_TAKEN.set(len(self._takers))

    def forget(self, names: Iterable[int]) -> None:
        """Forget messages that every connection has taken. Harmless when repeated."""
        for name in names:
            takers = self._takers.pop(name, None)
            if takers is not None:
                self._places -= _PLACES_A_MESSAGE + len(takers)
        if not self._takers:
            self._latest_takers = NO_TAKERS
        metrics.PARTLY_TAKEN.set(len(self._takers))
