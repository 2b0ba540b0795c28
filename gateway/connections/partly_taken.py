"""Messages that some of a user's connections have taken, and others had no room for.

A processor sends such a message again, under the same name. The connections that have the message
do not get the message twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from typing import Final

from gateway import metrics
from gateway.connections.connection import Connection

#: The identity of a message: its user, its id, the one device it is for (None: all devices), and
#: what the id is unique in (None: everything).
Name = tuple[str, str, str | None, str | int | None]
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

    __slots__ = ("_latest_takers", "_most_places", "_names", "_places", "_takers")

    def __init__(self, *, most_places: int = MOST_PLACES) -> None:
        self._most_places = most_places
        self._places = 0
        # Ordered, since the oldest key of a dict is slow to find behind deleted keys.
        self._takers: OrderedDict[int, Takers] = OrderedDict()
        self._names: dict[int, Name] = {}  # in full: the next process may hash otherwise
        self._latest_takers = NO_TAKERS

    def __len__(self) -> int:
        return len(self._takers)

    def has_none_of(self, names: Iterable[int]) -> bool:
        """Whether no message of `names` is here."""
        return not self._takers or self._takers.keys().isdisjoint(names)

    def takers(self, name: int | None) -> Takers:
        """Return the connections that have taken a message; none where it is not here."""
        return NO_TAKERS if name is None else self._takers.get(name, NO_TAKERS)

    def of(self, users: Container[str]) -> Iterator[tuple[Name, Takers]]:
        """Yield the messages of some users, by full names, with the takers."""
        for name, takers in self._takers.items():
            full_name = self._names[name]
            if full_name[0] in users:
                yield full_name, takers

    def remember(self, full_name: Name, takers: Takers) -> None:
        """Remember the takers of a message, in place of earlier takers."""
        name = hash(full_name)
        self.forget((name,))
        self._names[name] = full_name
        # The messages of a burst mostly have equal takers, which need one set.
        if takers == self._latest_takers:
            takers = self._latest_takers
        self._latest_takers = self._takers[name] = takers
        self._places += _PLACES_A_MESSAGE + len(takers)
        while self._places > self._most_places:
            oldest, oldest_takers = self._takers.popitem(last=False)
            del self._names[oldest]
            self._places -= _PLACES_A_MESSAGE + len(oldest_takers)
            metrics.PARTLY_TAKEN_EVICTED.inc()
        metrics.PARTLY_TAKEN.set(len(self._takers))

    def forget(self, names: Iterable[int]) -> None:
        """Forget messages that every connection has taken. Harmless when repeated."""
        for name in names:
            takers = self._takers.pop(name, None)
            if takers is not None:
                del self._names[name]
                self._places -= _PLACES_A_MESSAGE + len(takers)
        if not self._takers:
            self._latest_takers = NO_TAKERS
        metrics.PARTLY_TAKEN.set(len(self._takers))
