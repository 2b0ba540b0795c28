"""Messages that wait: for silent nodes, or for room in the connections of their users; by key."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from processor.reading.message import Message
from processor.reading.progress import Progress
from registry.directory import Node


class Waiting:
    """The messages that have left their flights, and wait; and whose users are to be looked up."""

    __slots__ = ("_by_key", "_pass", "_to_look_up")

    def __init__(self) -> None:
        # A dict of messages for every key, as an ordered set: messages leave in any order.
        self._by_key: dict[Hashable, dict[Message, None]] = {}
        self._to_look_up: dict[Hashable, None] = {}
        # Keys that are looked up before all of `_to_look_up`, the last first. A list: to take keys
        # from the front of a dict, a few at a time, passes over all that were taken before.
        self._pass: list[Hashable] = []

    def __bool__(self) -> bool:
        return bool(self._by_key)

    @property
    def users(self) -> Iterator[str]:
        """The users with messages here; a user may come twice."""
        return (next(iter(messages)).push.user for messages in self._by_key.values())

    @property
    def to_look_up(self) -> bool:
        """Whether a user is to be looked up."""
        return bool(self._pass or self._to_look_up)

    def of(self, key: Hashable) -> Sequence[Message]:
        """Return the messages of a key."""
        return tuple(self._by_key.get(key, ()))

    def add(self, message: Message) -> None:
        """Add a message; its user is looked up again by the next `look_up_all`."""
        self._by_key.setdefault(message.key, {})[message] = None

    def discard(self, message: Message) -> None:
        """Remove a message that has its outcome."""
        messages = self._by_key[message.key]
        del messages[message]
        if not messages:
            del self._by_key[message.key]
            self._to_look_up.pop(message.key, None)

    def look_up(self, message: Message) -> None:
        """Look the message's user up in the next round."""
        self._to_look_up[message.key] = None

    def look_up_all(self) -> None:
        """Look all users up in the next rounds."""
        self._to_look_up |= dict.fromkeys(self._by_key)

    def take_to_look_up(self, limit: int) -> dict[str, list[Hashable]]:
        """Return users to look up now, `limit` keys at most, with the keys of their messages."""
        if not self._pass:
            self._pass, self._to_look_up = [*reversed(self._to_look_up)], {}
        keys = self._pass[: -limit - 1 : -1]
        del self._pass[-limit:]
        keys_by_user: dict[str, list[Hashable]] = {}
        for key in keys:
            if key in self._by_key:  # else all messages of the key have their outcomes
                message = next(iter(self._by_key[key]))
                keys_by_user.setdefault(message.push.user, []).append(key)
        return keys_by_user

    def too_far_back(self) -> Iterator[tuple[Node, set[Message]]]:
        """Yield nodes with the messages that must not wait there any longer (progress.py)."""
        first_kept: dict[Progress, int] = {}
        by_node: dict[Node, set[Message]] = {}
        for messages in self._by_key.values():
            for message in messages:
                progress = message.progress
                if progress not in first_kept:
                    first_kept[progress] = progress.first_kept
                if message.number < first_kept[progress]:
                    for node in message.waiting_at:
                        by_node.setdefault(node, set()).add(message)
        yield from by_node.items()
