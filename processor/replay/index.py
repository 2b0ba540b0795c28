"""Where the messages of users are in a part of the log, without the messages.

Beyond the bytes that a processor has for payloads, a window keeps an index: 16 bytes a message,
however many users there are. The messages are read again from Kafka when a client asks for them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

#: User, device and collapse key: a newer message replaces an older one of an equal place.
Place = tuple[str, str | None, str]

#: Beyond every offset.
_NO_END: Final = 2**63


class _Offsets:
    """Offsets by the hash of a key; the offsets of a key are in order.

    Two sorted arrays, searched by halves: a dict would take some 100 bytes a key. Hashes of text
    are salted, so that nobody can choose keys of equal hashes.
    """

    __slots__ = ("_hashes", "_offsets")

    def __init__(self, hashes: Sequence[int], offsets: Sequence[int]) -> None:
        """`offsets` are in order, each with the hash of its key."""
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        self._hashes = array("q", [hashes[number] for number in order])
        self._offsets = array("q", [offsets[number] for number in order])

    def __len__(self) -> int:
        return len(self._offsets)

    def of(self, key_hash: int) -> Sequence[int]:
        """Return the offsets of a key, or of keys with an equal hash."""
        hashes = self._hashes
        first = bisect_left(hashes, key_hash)
        if first == len(hashes) or hashes[first] != key_hash:
            return ()
        return self._offsets[first : bisect_right(hashes, key_hash, first)]


class Index:
    """The offsets of a part of the log by user, and by place."""

    __slots__ = ("_by_place", "_by_user", "began_ms", "end")

    def __init__(
        self,
        users: Sequence[tuple[str, int]],
        places: Sequence[tuple[Place, int]],
        *,
        began_ms: int,
        end: int,
    ) -> None:
        """`users` and `places` come with the offset of a message each, in order.

        `end` is the offset behind the part, and `began_ms` the time when its first message came.
        """
        self.began_ms = began_ms
        self.end = end
        self._by_user = _Offsets([hash(user) for user, _ in users], [at for _, at in users])
        self._by_place = _Offsets([hash(place) for place, _ in places], [at for _, at in places])

    def __len__(self) -> int:
        return len(self._by_user)

    def of(self, user_hash: int, since: int, until: int = _NO_END) -> list[int]:
        """Return offsets with messages of a user, from `since` to before `until`, in order.

        A few may be of another user with an equal hash.
        """
        return [offset for offset in self._by_user.of(user_hash) if since <= offset < until]

    def replaces(self, place_hash: int, offset: int) -> bool:
        """Whether a message here is newer than `offset`, and has the place."""
        offsets = self._by_place.of(place_hash)
        return bool(offsets) and offsets[-1] > offset
