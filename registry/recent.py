"""A bounded map that forgets what is oldest, half of it at once."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps between half of `size` and `size` of the entries that were put last.

    Two dictionaries, since the front of one that is emptied from the front is slow to find.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, size: int) -> None:
        """`size` is 2 or more."""
        self._half = size // 2
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """Return what was put under `key`, None where that is forgotten."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: K, value: V) -> None:
        """Remember `value`; it is not None."""
        if len(self._young) >= self._half and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value
        self._old.pop(key, None)

    def forget(self, key: K) -> None:
        """Forget what was put under `key`. Harmless when repeated."""
        self._young.pop(key, None)
        self._old.pop(key, None)
