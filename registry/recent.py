"""A bounded map that forgets its oldest entries, half of the map at once."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps the entries that were put last: at least half of `size`, at most `size`.

    Two dictionaries, a young and an old one: popping the oldest key of a single dict scans the
    slots of all keys deleted before it, O(n) for every pop.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, size: int) -> None:
        """`size`, in entries, is 2 or more."""
        self._half = size // 2
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """Return the value that was put under `key`, None where the value is forgotten."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: K, value: V) -> None:
        """Remember `value` under `key`; None can't be remembered."""
        if len(self._young) >= self._half and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value
        self._old.pop(key, None)

    def forget(self, key: K) -> None:
        """Forget the value that was put under `key`. Harmless when repeated."""
        self._young.pop(key, None)
        self._old.pop(key, None)
