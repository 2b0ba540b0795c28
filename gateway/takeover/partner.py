"""Messages for users with connections in the other process, during a take-over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from gateway.connections.hub import Hub
from gateway.push import Item, ItemResults, Pusher, Result
from gateway.takeover.channel import Channel
from gateway.takeover.format import Push, Pushed
from registry.message import BATCH_MEDIA_TYPE

_MEDIA_TYPE: Final = BATCH_MEDIA_TYPE.encode("ascii")
#: The result of a message without an answer: the processor sends the message again.
_AGAIN: Final[Result] = {"error": "overloaded"}
_encode: Final = msgspec.msgpack.Encoder().encode


class _Results(msgspec.Struct):
    results: list[int | dict[str, str | int] | list[int | dict[str, str | int]]]


_decode: Final = msgspec.msgpack.Decoder(_Results).decode


class _Part(NamedTuple):
    """The part of a batch for one process: items, and the positions in the batch.

    Of an item for a list of users, `users` has the positions of the part's users in the list.
    """

    items: list[Item | None]
    positions: list[int]
    users: list[list[int] | None]

    def add(self, position: int, item: Item | None, users: list[int] | None = None) -> None:
        """Add an item of the batch, or its part for the users at `users` of its list."""
        self.items.append(item)
        self.positions.append(position)
        self.users.append(users)


class OtherProcess:
    """The partner of this process, as seen by pushes.

    `users` has the users with connections there; some may have connections here too. While
    `has_rest`, a user who is not in the hub may be there: for as long as this process is the
    earlier one.
    """

    def __init__(self, channel: Channel, hub: Hub, *, has_rest: bool) -> None:
        self.users: set[str] = set()
        self.has_rest = has_rest
        self._channel = channel
        self._hub = hub
        self._numbers = count()
        self._awaited: dict[int, asyncio.Future[bytes | None]] = {}

    async def push(
        self,
        items: Sequence[Item | None],
        here: Callable[[Sequence[Item | None]], Awaitable[ItemResults]],
    ) -> ItemResults:
        """Push items here, there, or on both sides; return the results of the node in all.

        Users stay where they are until the batch is answered.
        """
        part_here, part_there = _Part([], [], []), _Part([], [], [])
        for position, item in enumerate(items):
            self._share(position, item, part_here, part_there)
        if not part_there.items:
            return await here(items)
        awaited = self._send(part_there.items)  # first: behind the records of its users
        results: list[Result | list[Result] | None] = [None] * len(items)
        if part_here.items:
            _add(results, items, part_here, await here(part_here.items))
        _add(results, items, part_there, _results_in(await awaited, part_there.items))
        return [_AGAIN if result is None else result for result in results]

    def pushed(self, message: Pushed) -> None:
        """Take the results of a batch."""
        awaited = self._awaited.pop(message.number, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(message.body)

    def gone(self) -> None:
        """Take note that no answer follows: unanswered messages come again."""
        for awaited in self._awaited.values():
            if not awaited.done():
                awaited.set_result(None)
        self._awaited.clear()

    @property
    def awaits(self) -> bool:
        """Whether results are awaited."""
        return bool(self._awaited)

    def _send(self, items: Sequence[Item | None]) -> asyncio.Future[bytes | None]:
        awaited: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        if not self._channel.is_open:
            awaited.set_result(None)
            return awaited
        number = next(self._numbers)
        self._awaited[number] = awaited
        self._channel.send(Push(number, _encode(items)))
        return awaited

    def _share(self, position: int, item: Item | None, here: _Part, there: _Part) -> None:
        """Put an item into the parts of the processes with users of the item."""
        if item is None:
            here.add(position, item)
        elif isinstance(item.user, str):
            is_there = self._is_there(item.user)
            if is_there:
                there.add(position, item)
            if not is_there or item.user in self._hub:
                here.add(position, item)
        else:
            users = item.user
            at_there = [at for at, user in enumerate(users) if self._is_there(user)]
            is_there_alone = {at for at in at_there if users[at] not in self._hub}
            at_here = [at for at in range(len(users)) if at not in is_there_alone]
            for part, at in ((here, at_here), (there, at_there)):
                if at:
                    part.add(position, structs.replace(item, user=[users[n] for n in at]), at)

    def _is_there(self, user: str) -> bool:
        return user in self.users or (self.has_rest and user not in self._hub)


async def push_for_partner(pusher: Pusher, channel: Channel, message: Push) -> None:
    """Deliver a partner's batch here, and send the results."""
    body: bytes | None = None
    try:
        _, body = await pusher.batch(_MEDIA_TYPE, message.body)
    finally:
        channel.send(Pushed(message.number, body))


def _results_in(body: bytes | None, items: Sequence[Item | None]) -> ItemResults:
    """Return the partner's results; without an answer, all messages are to come again."""
    if body is not None:
        results = _decode(body).results
        if len(results) == len(items):
            return results  # type: ignore[return-value] # of the partner's own Pusher
    return [
        _AGAIN if item is None or isinstance(item.user, str) else [_AGAIN] * len(item.user)
        for item in items
    ]


def _add(
    results: list[Result | list[Result] | None],
    items: Sequence[Item | None],
    part: _Part,
    part_results: ItemResults,
) -> None:
    """Add the results of one process to the results of the batch."""
    for position, users, result in zip(part.positions, part.users, part_results, strict=True):
        before = results[position]
        if users is None:
            assert not isinstance(result, list) and not isinstance(before, list)  # noqa: S101, PT018
            results[position] = result if before is None else sum_of(before, result)
            continue
        item = items[position]
        assert item is not None and isinstance(result, list)  # noqa: S101, PT018
        by_user: list[Result | None] = (
            list(before) if isinstance(before, list) else [None] * len(item.user)
        )
        for at, user_result in zip(users, result, strict=True):
            earlier = by_user[at]
            by_user[at] = user_result if earlier is None else sum_of(earlier, user_result)
        results[position] = by_user  # type: ignore[assignment] # None only until both are added


def sum_of(first: Result, second: Result) -> Result:
    """Return the result of a message for a user who has connections in both processes."""
    taken = overloaded = 0
    errors: list[str] = []
    for result in (first, second):
        if isinstance(result, int):
            taken += result
        elif "error" in result:
            errors.append(str(result["error"]))
        else:
            taken += int(result["taken"])
            overloaded += int(result["overloaded"])
    refusals = [error for error in errors if error not in _ABSENCES]
    if overloaded := overloaded + ("overloaded" in refusals):
        return {"taken": taken, "overloaded": overloaded} if taken else _AGAIN
    if taken or not errors:
        return taken
    return {"error": (refusals or errors)[0]}


#: Errors of a process without the device of the message.
_ABSENCES: Final = ("no-device",)
