"""Takes a batch of messages to the hub, and returns a result for every message. Knows no HTTP.

A batch is decoded, its items are checked and addressed to users, and repeats are recognised. All
messages but the repeats are delivered to this node's connections. Delivery pauses now and then, so
that no batch holds up the event loop.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from itertools import count, islice
from typing import Annotated, Any, Final, Protocol

import msgspec

from gateway import metrics
from gateway.connections.as_of import AsOf
from gateway.connections.connection import Connection
from gateway.connections.delivery import Delivery
from gateway.connections.hub import Addressed, Hub, Partial, Refusal, Results, Tally
from gateway.connections.hub import Result as HubResult
from gateway.connections.partly_taken import Name, Takers
from gateway.connections.repeats import Repeats
from gateway.errors import GatewayError
from registry.message import (
    BATCH_MEDIA_TYPE,
    MAX_BATCH_MESSAGES,
    valid_device,
    valid_id,
    valid_type,
    valid_user,
)

#: The result of one message for one user: how many connections took the message, 0 where the user
#: is not on this node, `{"error": …}`, or `{"taken": n, "overloaded": m}` where n connections have
#: the message and m had no room for it.
Result = int | dict[str, str] | dict[str, int]
#: How many messages of a batch are looked up in the hub and encoded before the first write. Larger
#: slices are no faster, and their buffers become the process's peak memory.
_SLICE: Final = 200
#: The most users of a batch: an item for a list of users counts once for each.
MAX_BATCH_USERS: Final = 10_000
#: How long delivery goes on before the event loop gets a turn, in seconds; several slices.
_TURN_SECONDS: Final = 0.01
#: How many messages without an id a process numbers, before the numbers of the next one begin.
_GENERATION_BITS: Final = 40


class Item(msgspec.Struct):
    """An item of a batch: one message, for a user or for a list of users.

    `data` is a string, bytes (in MessagePack), or base64 text if `encoding` is "base64". Messages
    of equal ids and different `id_scope` are different messages, and no repeats. A `boundary` is
    sent to no connection: only connections that have taken the message before get the user's later
    messages of the batch. `position` is the message's place in Kafka, `timestamp_ms` its record's
    timestamp, Unix time in ms, and `lane` its topic, None where the batch has only one.
    `traceparent` is that of a traced message (registry/message.py). Unknown fields are ignored.
    """

    user: str | Annotated[list[str], msgspec.Meta(max_length=MAX_BATCH_USERS)]
    data: Any
    encoding: str | None = None
    id: str | None = None
    type: str | None = None
    device: str | None = None
    id_scope: str | int | None = None
    boundary: bool = False
    position: str | None = None
    timestamp_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    lane: Annotated[str, msgspec.Meta(max_length=249)] | None = None
    traceparent: str | None = None


class BadBatch(GatewayError):
    """A batch is refused as a whole; `status` is the HTTP status of the refusal."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class _EncodedUser(msgspec.Struct):
    """The user, or the list of users, of an item, not decoded yet."""

    user: msgspec.Raw


class _BadItem(GatewayError):
    """An item can't be delivered to any user; `result` is the error in the item's result."""

    def __init__(self, result: str) -> None:
        super().__init__(result)
        self.result = result


class _Codec(ABC):
    """An encoding of batches and results."""

    def __init__(self, module: Any, media_type: str) -> None:
        self.media_type = media_type.encode("ascii")
        self.encode: Callable[[object], bytes] = module.encode
        self._batch = module.Decoder(list[Item])
        self._raw = module.Decoder(list[msgspec.Raw])
        self._item = module.Decoder(Item)
        self._user = module.Decoder(_EncodedUser)

    def decode(self, body: bytes) -> list[Item | None]:
        """Return a batch's items in order, with None in place of an item of the wrong shape.

        Raises:
            msgspec.DecodeError: the body is no list at all.
            BadBatch: the batch has too many messages or users.
        """
        try:
            self._refuse_early(body)
            try:
                items: list[Item | None] = self._batch.decode(body)
            except (msgspec.ValidationError, UnicodeDecodeError):
                raws = self._raw.decode(body)
                self._refuse_long(raws)
                items = [self._item_or_none(raw) for raw in raws]
        except RecursionError as error:
            raise msgspec.DecodeError("nested too deeply") from error
        _refuse_above(MAX_BATCH_MESSAGES, len(items), "messages")
        lists = [item.user for item in items if item and item.user.__class__ is list]
        _refuse_above(MAX_BATCH_USERS, len(items) - len(lists) + sum(map(len, lists)), "users")
        return items

    @abstractmethod
    def _refuse_early(self, body: bytes) -> None:
        """Refuse a body whose decoder would build a long list before it counts the elements."""

    @abstractmethod
    def _count(self, encoded: memoryview, most: int) -> int:
        """Return how many users an encoded user or list of users has, or `most` if more."""

    def _refuse_long(self, raws: Sequence[msgspec.Raw]) -> None:
        """Refuse a batch of too many messages or users, whose items are not decoded yet."""
        _refuse_above(MAX_BATCH_MESSAGES, len(raws), "messages")
        users = 0
        for raw in raws:
            try:
                encoded = memoryview(self._user.decode(raw).user)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue  # an item of the wrong shape: `_item_or_none` finds the same
            users += self._count(encoded, MAX_BATCH_USERS + 1 - users)
            _refuse_above(MAX_BATCH_USERS, users, "users")

    def _item_or_none(self, raw: msgspec.Raw) -> Item | None:
        try:
            return self._item.decode(raw)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class _Json(_Codec):
    """JSON, for people. msgspec knows the length of a list when the list is decoded."""

    _STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
    _LIST_OF_USERS: Final = re.compile(rb'"user"\s*+:\s*+\[')

    def _refuse_early(self, body: bytes) -> None:
        # A user in a list takes three bytes at least: two quotes and a comma.
        if len(body) > 3 * MAX_BATCH_USERS and self._LIST_OF_USERS.search(body):
            self._refuse_long(self._raw.decode(body))

    def _count(self, encoded: memoryview, most: int) -> int:
        return sum(1 for _ in islice(self._STRING.finditer(encoded), most))


class _Packed(_Codec):
    """MessagePack, for processors. An array begins with its length, which msgspec bounds first."""

    def _refuse_early(self, body: bytes) -> None:
        length = self._count(memoryview(body), len(body) + 1)
        if length <= len(body):  # the elements of a longer array are not all there
            _refuse_above(MAX_BATCH_MESSAGES, length, "messages")

    def _count(self, encoded: memoryview, most: int) -> int:
        first = encoded[0] if encoded else 0
        if first & 0xF0 == 0x90:  # fixarray
            return first & 0x0F
        length_bytes = {0xDC: 2, 0xDD: 4}.get(first, 0)  # array 16, array 32
        if not length_bytes:
            return 1
        return min(most, int.from_bytes(encoded[1 : 1 + length_bytes], "big"))


def _refuse_above(most: int, count: int, what: str) -> None:
    if count > most:
        raise BadBatch(413, f"too many {what}; at most {most}")


_JSON: Final = _Json(msgspec.json, "application/json")
_PACKED: Final = _Packed(msgspec.msgpack, BATCH_MEDIA_TYPE)


class BatchDelivery:
    """The delivery of one batch, over several turns of the event loop.

    `full` has the connections that had no room for a message of the batch: they get no later
    message of it. `boundaries` has users with the takers of a boundary: no other connection of the
    user gets a message of the batch.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.full: set[Connection] = set()
        self.boundaries: list[tuple[str, Takers]] = []
        self._began = time.monotonic()

    async def share_turn(self) -> None:
        """Let the event loop do its other work, where this turn has been long.

        Connections that come meanwhile are held to be full where the user has a full connection:
        refused messages come again, and a newcomer would get them behind later messages.
        """
        if time.monotonic() - self._began >= _TURN_SECONDS:
            before = {user: self._hub.of(user) for user in {held.user for held in self.full}}
            await asyncio.sleep(0)
            for user, connections in before.items():
                self.full.update(held for held in self._hub.of(user) if held not in connections)
            self._began = time.monotonic()


#: The results of items, in their order.
ItemResults = list[Result | list[Result]]


class Partner(Protocol):
    """The other process of this node, during a take-over: it has users too."""

    async def push(
        self,
        items: Sequence[Item | None],
        here: Callable[[Sequence[Item | None]], Awaitable[ItemResults]],
    ) -> ItemResults:
        """Push items here, there, or on both sides; return the results of the node in all."""


class Pusher:
    """Pushes batches of messages into one node's connections."""

    #: The other process, while a take-over is under way.
    partner: Partner | None = None
    _held_back: asyncio.Event | None = None  # set when batches may begin again
    _under_way = 0  # batches that have begun, and are not answered yet
    _all_answered: asyncio.Event | None = None

    def __init__(
        self,
        hub: Hub,
        repeats: Repeats,
        as_of: AsOf,
        *,
        epoch: str,
        max_payload_bytes: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`epoch` is the prefix of the ids that are made for messages without an id.

        `as_of` is the time of cursors; `wall_clock`, Unix time in seconds, measures latencies.
        """
        self._hub = hub
        self._as_of = as_of
        self._repeats = repeats
        self._epoch = epoch
        self._max_payload_bytes = max_payload_bytes
        self._wall_clock = wall_clock
        self._numbers = count(1)
        # One message at a time is on its way to a crowd: later messages do not go past it.
        self._crowd_lock = asyncio.Lock()

    async def batch(self, media_type: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Push a batch; return the media type and the body of the answer, in the batch's encoding.

        The encoding is MessagePack where `media_type` names MessagePack, else JSON. At most 1,000
        messages, for 10,000 users in all.

        Raises:
            BadBatch: the body is no list of messages, or the batch is too large.
        """
        under_way = BatchDelivery(self._hub)
        codec = _PACKED if media_type == _PACKED.media_type else _JSON
        try:
            items = codec.decode(body)
        except msgspec.DecodeError as error:
            raise BadBatch(400, f"the body is no list of messages: {error}") from error
        metrics.BATCH.observe(len(items))
        if b"boundary" in body:  # a search of the bytes costs less than a look at each item
            under_way.boundaries = self._boundaries(items)
        results = await self._push_all(items, under_way)
        return codec.media_type, codec.encode({"results": results})

    async def _push_all(
        self, items: Sequence[Item | None], under_way: BatchDelivery
    ) -> ItemResults:
        """Push the items of a batch, a slice at a time, here and where a partner has users."""

        async def here(items: Sequence[Item | None]) -> ItemResults:
            results: ItemResults = []
            for start in range(0, len(items), _SLICE):
                results += await self.push(items[start : start + _SLICE], under_way)
            return results

        while self._held_back is not None:
            await self._held_back.wait()
        self._under_way += 1
        try:
            if self.partner is None:
                return await here(items)
            return await self.partner.push(items, here)
        finally:
            self._under_way -= 1
            if not self._under_way and self._all_answered is not None:
                self._all_answered.set()

    @asynccontextmanager
    async def held_back(self) -> AsyncIterator[None]:
        """Let the batches under way end, and no further batch begin within the block.

        One block at a time.
        """
        self._held_back, self._all_answered = asyncio.Event(), asyncio.Event()
        try:
            if self._under_way:
                await self._all_answered.wait()
            yield
        finally:
            self._held_back.set()
            self._held_back = self._all_answered = None

    def begin_generation(self, generation: int) -> None:
        """Number messages without an id apart from those of earlier processes of this node."""
        self._numbers = count((generation << _GENERATION_BITS) + 1)

    def _boundaries(self, items: Sequence[Item | None]) -> list[tuple[str, Takers]]:
        """Return the users of the boundaries among the items, with the boundaries' takers."""
        return [
            (item.user, self._repeats.takers((item.user, item.id, item.device, item.id_scope)))
            for item in items
            if item is not None and item.boundary and item.id and isinstance(item.user, str)
        ]

    async def one(self, item: Item) -> Result:
        """Push an item for one user; return its result."""
        (result,) = await self._push_all([item], BatchDelivery(self._hub))
        assert not isinstance(result, list)  # noqa: S101 - one user, one result
        return result

    def one_at_once(self, item: Item) -> Result:
        """Push an item for one user who is no crowd; return its result, without a pause."""
        batch: list[Addressed] = []
        names: dict[int, Name] = {}
        error = self._address(item, batch, names)
        if error is not None:
            result: Result = {"error": error}
        else:
            (taken,) = self._repeats.deliver(batch, names, self._deliver_new)
            _, user, _ = batch[0]
            result = taken if taken.__class__ is int and taken else _unlike_taken(taken, user)
        _count((result,))
        return result

    async def push(self, items: Sequence[Item | None], under_way: BatchDelivery) -> ItemResults:
        """Push items; return their results in order, a list of results for a list of users."""
        batch: list[Addressed] = []
        names: dict[int, Name] = {}
        errors = [self._address(item, batch, names) for item in items]
        hub_results = await self._deliver(batch, names, under_way)
        results_of_batch = iter(
            [
                result if result.__class__ is int and result else _unlike_taken(result, user)
                for result, (_, user, _) in zip(hub_results, batch, strict=True)
            ]
        )
        results = [
            _in_shape(item, results_of_batch) if error is None else _refused(item, error)
            for item, error in zip(items, errors, strict=True)
        ]
        _count(results)
        return results

    async def _deliver(
        self, batch: Sequence[Addressed], names: Mapping[int, Name], under_way: BatchDelivery
    ) -> Results:
        """Deliver messages in their order, a part at a time; repeats are not sent."""
        results: Results = []
        for part in _parts(batch, self._hub.crowds):
            messages = batch[part.start : part.stop]
            for user, takers in under_way.boundaries:  # connections may have come meanwhile
                under_way.full.update(held for held in self._hub.of(user) if held not in takers)
            if messages[0][1] in self._hub.crowds:
                result = await self._deliver_to_crowd(messages[0], names.get(part.start), under_way)
                results.append(result)
            else:
                here = names if len(part) == len(batch) else _names_of(part, names)
                deliver = partial(self._deliver_new, full=under_way.full)
                results += self._repeats.deliver(messages, here, deliver)
            await under_way.share_turn()
        return results

    def _deliver_new(
        self,
        batch: Sequence[Addressed],
        takers: Mapping[int, Takers],
        *,
        full: set[Connection] | None = None,
    ) -> Results:
        """Deliver messages that are no repeats, as `Hub.deliver` does; note their latencies."""
        results = self._hub.deliver(batch, takers, full=full)
        metrics.LATENCY.note(batch, results, self._now_ms())
        return results

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1_000)

    async def _deliver_to_crowd(
        self, message: Addressed, name: Name | None, under_way: BatchDelivery
    ) -> HubResult:
        """Deliver one message to a user with many connections, in parts with turns between."""

        async def deliver(takers: Takers) -> HubResult:
            tally = Tally(takers)
            for _ in self._hub.deliver_in_parts(message, tally, under_way.full):
                await under_way.share_turn()
            _, user, device = message
            result = self._hub.result(tally, user, device)
            metrics.LATENCY.note([message], [result], self._now_ms())
            return result

        async with self._crowd_lock:
            return await self._repeats.deliver_one(message, name, deliver)

    def _address(
        self, item: Item | None, batch: list[Addressed], names: dict[int, Name]
    ) -> str | None:
        """Add an item to the batch, once for every user of the item; or return the item's error.

        A message with an id may be a repeat: `names` gets the message's name, by the message's
        position in the batch.
        """
        if item is None:
            return "invalid"
        try:
            delivery = self._delivery(item)
        except _BadItem as bad:
            return bad.result
        users, device, published_id, scope = item.user, item.device, item.id, item.id_scope
        if isinstance(users, str):
            if published_id is not None:
                names[len(batch)] = (users, published_id, device, scope)
            batch.append((delivery, users, device))
            return None
        if published_id is not None:
            users_names = [(user, published_id, device, scope) for user in users]
            names.update(enumerate(users_names, len(batch)))
        batch += [(delivery, user, device) for user in users]
        return None

    def _delivery(self, item: Item) -> Delivery:
        data = item.data
        text = data if isinstance(data, str) and item.encoding is None else None
        payload = _payload(item)
        if len(payload) > self._max_payload_bytes:
            raise _BadItem("too-large")
        if item.id is not None and not valid_id(item.id):
            raise _BadItem("invalid")
        if item.type is not None and not valid_type(item.type):
            raise _BadItem("invalid")
        if item.device is not None and not valid_device(item.device):
            raise _BadItem("invalid")
        if item.position is not None and not item.position.isprintable():
            raise _BadItem("invalid")  # it would end the line of an event
        message_id = item.id or f"{self._epoch}-{next(self._numbers)}"
        return Delivery(
            payload,
            message_id=message_id,
            event_type=item.type,
            text=text,
            position=item.position,
            as_of=self._as_of.text,
            timestamp_ms=item.timestamp_ms,
            lane=item.lane,
        )


def _parts(batch: Sequence[Addressed], crowds: Collection[str]) -> Iterator[range]:
    """Cut a batch into parts: each message for a crowd by itself, all others in slices."""
    if len(batch) <= _SLICE and not crowds:
        if batch:
            yield range(len(batch))
        return
    start = 0
    for position, (_, user, _) in enumerate(batch):
        if position > start and (user in crowds or position - start == _SLICE):
            yield range(start, position)
            start = position
        if user in crowds:
            yield range(position, position + 1)
            start = position + 1
    if start < len(batch):
        yield range(start, len(batch))


def _names_of(part: range, names: Mapping[int, Name]) -> dict[int, Name]:
    return {at - part.start: names[at] for at in part if at in names}


def _unlike_taken(hub_result: HubResult, user: str) -> Result:
    """Return the result of a message that not all connections have taken, or none.

    User ids are checked only here: no connection has an invalid user id, so a message for an
    invalid id is never taken.
    """
    if isinstance(hub_result, Refusal):
        return {"error": hub_result.value}
    if isinstance(hub_result, Partial):
        return {"taken": len(hub_result.takers), "overloaded": hub_result.overloaded}
    return hub_result if valid_user(user) else {"error": "invalid"}


def _in_shape(item: Item | None, results: Iterator[Result]) -> Result | list[Result]:
    """Return the next of the results; for a list of users the next results, as a list."""
    assert item is not None  # noqa: S101 - an item of the wrong shape has an error
    return next(results) if isinstance(item.user, str) else [*islice(results, len(item.user))]


def _refused(item: Item | None, error: str) -> Result | list[Result]:
    if item is None or isinstance(item.user, str):
        return {"error": error}
    return [{"error": error} for _ in item.user]


def _count(results: Sequence[Result | list[Result]]) -> None:
    """Count the results of a batch together: every increment of a counter takes a lock."""
    flat: list[Result] = []
    for result in results:
        flat += result if isinstance(result, list) else (result,)
    not_here = flat.count(0)
    others = [result for result in flat if isinstance(result, dict)]
    for result in others:
        metrics.PUSHED.labels(result.get("error", "partial")).inc()
    if delivered := len(flat) - not_here - len(others):
        _DELIVERED.inc(delivered)
    if not_here:
        _NOT_HERE.inc(not_here)


_DELIVERED: Final = metrics.PUSHED.labels("delivered")
_NOT_HERE: Final = metrics.PUSHED.labels("not-here")


def _payload(item: Item) -> bytes:
    data = item.data
    if item.encoding == "base64" and isinstance(data, str):
        try:
            return b64decode(data, validate=True)
        except ValueError as error:
            raise _BadItem("invalid") from error
    if item.encoding is not None:
        raise _BadItem("invalid")
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise _BadItem("invalid") from error
    raise _BadItem("invalid")
