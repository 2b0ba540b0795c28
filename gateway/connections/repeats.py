"""Repeats: messages that a processor sends again, after this node has delivered them.

When a processor dies before its commit, another processor reads the same messages from Kafka and
forwards them once more. A repeat is answered with the result of the first delivery, and is not
sent. Everything is in the memory of one process: a user who has moved to another node, or whose
node was restarted, may get a message twice.
"""

from __future__ import annotations

from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Container,
    Iterator,
    Mapping,
    Sequence,
)
from itertools import islice

from gateway import metrics
from gateway.connections.hub import Addressed, Partial, Result, Results
from gateway.connections.partly_taken import NO_TAKERS, Name, PartlyTaken, Takers

#: Sends a batch, which may be empty, to this node's connections; returns the results in the order
#: of the messages. The mapping has, by position in the batch, the connections that have a message
#: already and don't get the message again.
Deliver = Callable[[Sequence[Addressed], Mapping[int, Takers]], Results]


class Repeats:
    """The results of the latest messages that this node has delivered.

    Names are stored as 64-bit hashes. Python hashes strings with a key that is drawn at the start
    of the process (hash randomisation), so a publisher can't construct two ids with one hash. An
    entry takes some 75 bytes (measured); the names themselves would take hundreds. The price is a
    collision: a new message with the hash of a remembered message is taken for a repeat, so it is
    answered and never sent. With the default window (131,072; twice as many are remembered at most)
    the probability is 2 × 131,072 / 2⁶⁴, 1.4 × 10⁻¹⁴ a message: at 25,000 messages a second on a
    node, one collision in ninety years.

    Results are kept in two dicts, the young and the old generation. New results go to the young
    generation. When they do not fit, the young generation becomes the old one, the previous old
    generation is dropped as a whole, and the new results begin a young generation. A single dict
    was rejected: popping the oldest key of a dict scans the slots of all keys deleted before.
    """

    __slots__ = ("_old", "_partly_taken", "_unscreened", "_window", "_young")

    def __init__(
        self, window: int, *, unscreened: Callable[[str], Takers | None] = lambda _: None
    ) -> None:
        """Remember at least the last `window` delivered messages, and at most twice as many.

        0: remember nothing, so no message is a repeat. `unscreened` returns a user's connections
        without a screen (gate.py), or None where no connection of the user has one. Connections
        with a screen get repeats too: the screen knows what a connection has, and a message may
        have been taken by a connection of the user that has ended.
        """
        self._window = window
        self._unscreened = unscreened
        self._young: dict[int, int] = {}  # hash of a name → connections that took the message
        self._old: dict[int, int] = {}
        self._partly_taken = PartlyTaken()

    def deliver(
        self, batch: Sequence[Addressed], names: Mapping[int, Name], deliver: Deliver
    ) -> Results:
        """Pass a batch to `deliver` without its repeats; return a result for every message.

        `names` maps the positions of messages that may be repeats (messages with an id) to their
        names; its positions ascend, as `_deliver_new` needs an original before its repeats. A
        repeat gets the result of the first delivery, also where both are in this batch. A message
        with a result of 0 or a refusal was taken by no connection. Such a result is not remembered:
        when the message comes in a later batch, delivery is tried afresh. A message that was partly
        taken is then sent to the connections that have not taken it, new ones too, and its result
        counts all takers.
        """
        if not names:
            return deliver(batch, {})
        if not self._window:
            return self._deliver_all(batch, names, deliver)
        hashes = list(map(hash, names.values()))
        if self._all_new(hashes):
            results = deliver(batch, {})
            all_named = len(names) == len(results)  # then the list need not be copied
            named_results = results if all_named else [results[at] for at in names]
            if not self._remember(hashes, named_results):
                self._note_takers(names.values(), named_results)
            return results
        hash_by_position = dict(zip(names, hashes, strict=True))
        results = self._deliver_new(batch, hash_by_position, deliver)
        # Results that the young generation has already must not count towards its size: repeats
        # would push out messages that were delivered after them.
        unremembered = [at for at, name in hash_by_position.items() if name not in self._young]
        self._remember(
            [hash_by_position[at] for at in unremembered], [results[at] for at in unremembered]
        )
        self._note_takers(names.values(), [results[at] for at in names])
        return results

    def takers(self, name: Name) -> Takers:
        """Return the connections that have taken a message which others had no room for."""
        return self._partly_taken.takers(hash(name))

    def _deliver_all(
        self, batch: Sequence[Addressed], names: Mapping[int, Name], deliver: Deliver
    ) -> Results:
        """Deliver a batch of which no message is a repeat, as there is no window.

        The takers of partly taken messages are known all the same: such a message comes again
        until every connection has it.
        """
        hash_by_position = {at: hash(name) for at, name in names.items()}
        takers = {at: self._partly_taken.takers(name) for at, name in hash_by_position.items()}
        results = deliver(batch, {at: earlier for at, earlier in takers.items() if earlier})
        self._note_takers(names.values(), [results[at] for at in names])
        return results

    def _note_takers(self, names: Collection[Name], results: Results) -> None:
        """Remember who has taken a part of a message; forget messages that everybody has taken."""
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Partial):
                self._partly_taken.remember(name, result.takers)
        if self._partly_taken:
            self._partly_taken.forget(
                hash(name)
                for name, result in zip(names, results, strict=True)
                if isinstance(result, int)
            )

    def partly_taken_of(self, users: Container[str]) -> Iterator[tuple[Name, Takers]]:
        """Yield the partly taken messages of some users, with their takers."""
        return self._partly_taken.of(users)

    def adopt_partly_taken(self, name: Name, takers: Takers) -> None:
        """Remember a partly taken message of the earlier process."""
        self._partly_taken.remember(name, takers)

    def generations(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Return the young and the old results, by hashes of this process, for the next one."""
        return self._young, self._old

    def adopt_generations(self, young: Mapping[int, int], old: Mapping[int, int]) -> None:
        """Remember the results of the earlier process, which hashes alike, before one's own."""
        if self._window:
            self._old = {**old, **self._old}
            self._young = {**young, **self._young}

    async def deliver_one(
        self,
        message: Addressed,
        name: Name | None,
        deliver: Callable[[Takers], Awaitable[Result]],
    ) -> Result:
        """Await `deliver`, which sends one message over some time, unless the message is a repeat.

        `deliver` gets the connections that have the message already. `name` is None where the
        message has no id. Two calls with one name must not overlap.
        """
        if name is None:
            return await deliver(NO_TAKERS)
        name_hash = hash(name)
        earlier_result = self._young.get(name_hash) or self._old.get(name_hash)
        takers = self._partly_taken.takers(name_hash)
        if earlier_result is not None:
            metrics.REPEATS.inc()
            unscreened = self._decided_by_screens(message)
            if unscreened is None:
                return earlier_result
            takers = unscreened
        result = await deliver(takers)
        self._remember([name_hash], [result])
        self._note_takers([name], [result])
        return result

    def _all_new(self, hashes: Sequence[int]) -> bool:
        """Whether no message is a repeat, of an earlier batch or within this batch."""
        return (
            self._young.keys().isdisjoint(hashes)
            and self._old.keys().isdisjoint(hashes)
            and len(set(hashes)) == len(hashes)
            and self._partly_taken.has_none_of(hashes)
        )

    def _deliver_new(
        self, batch: Sequence[Addressed], hash_by_position: Mapping[int, int], deliver: Deliver
    ) -> Results:
        """Deliver a batch in which some messages are repeats; return all results in order."""
        position_by_hash: dict[int, int] = {}  # the first message with a hash, in this batch
        earlier_results: dict[int, int] = {}  # by position: repeats of earlier batches
        original_positions: dict[int, int] = {}  # by position: repeats within this batch
        takers_before: dict[int, Takers] = {}  # by position
        for position, name_hash in hash_by_position.items():
            # Remembered results are never 0, so 0 is not among the values of either `get`.
            result = self._young.get(name_hash) or self._old.get(name_hash)
            original = position_by_hash.setdefault(name_hash, position)
            takers = (
                self._partly_taken.takers(name_hash)
                if result is None
                else self._decided_by_screens(batch[position])
            )
            if result is not None and takers is None:
                earlier_results[position] = result
            elif original != position:
                original_positions[position] = original
            elif takers:
                takers_before[position] = takers
        metrics.REPEATS.inc(len(earlier_results) + len(original_positions))
        new_positions = [
            position
            for position in range(len(batch))
            if position not in earlier_results and position not in original_positions
        ]
        new_results = iter(
            deliver(
                [batch[position] for position in new_positions],
                {
                    number: takers_before[position]
                    for number, position in enumerate(new_positions)
                    if position in takers_before
                },
            )
        )
        results: Results = []
        for position in range(len(batch)):
            if position in original_positions:
                results.append(results[original_positions[position]])
            elif position in earlier_results:
                results.append(earlier_results[position])
            else:
                results.append(next(new_results))
        return results

    def _decided_by_screens(self, message: Addressed) -> Takers | None:
        """Return the connections that have a repeat; None where no screen is to decide.

        Screens know positions alone: what is in no log is a repeat for every connection.
        """
        delivery, user, _ = message
        return None if delivery.position is None else self._unscreened(user)

    def _remember(self, hashes: Sequence[int], results: Results) -> bool:
        """Remember the results of delivered messages; return whether all were delivered."""
        delivered = {
            name_hash: result
            for name_hash, result in zip(hashes, results, strict=True)
            if isinstance(result, int) and result
        }
        all_delivered = len(delivered) == len(hashes)
        if len(self._young) + len(delivered) <= self._window:
            self._young.update(delivered)
            return all_delivered
        # A generation holds at most `window` results. Of a larger batch the last ones are kept.
        surplus = max(0, len(delivered) - self._window)
        self._old = self._young
        self._young = dict(islice(delivered.items(), surplus, None)) if surplus else delivered
        return all_delivered
