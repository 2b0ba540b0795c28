"""What comes again: a processor that dies before it commits leaves its batch to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from gateway import metrics
from gateway.connections.hub import Addressed, Refusal

#: What makes a message: its user, its id and the one device it is for.
Name = tuple[str, str, str | None]
#: What each message of a batch came to, in its order.
Taken = list[int | Refusal]
Deliver = Callable[[Sequence[Addressed]], Taken]


class Repeats:
    """The results of the latest messages that were delivered here.

    A message is known by 64 bits: its name's hash, under a key that each process draws (Python's
    own hash randomisation). That is some 75 bytes instead of its names' hundreds. A message whose
    hash is that of another would be taken for its repeat: answered, and never sent. With the
    default window one in 10¹⁴ meets that; at 25,000 a second, one in two centuries.

    Two generations: when the young one is full it becomes the old one, which goes as a whole.
    Whoever takes the oldest out of one dict looks through all the places of those before it.
    """

    __slots__ = ("_old", "_window", "_young")

    def __init__(self, window: int) -> None:
        """Know at least the last `window` messages again, at most twice as many; 0: none."""
        self._window = window
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def deliver(
        self, batch: Sequence[Addressed], names: Mapping[int, Name], deliver: Deliver
    ) -> Taken:
        """Let `deliver` have a batch but for its repeats, which come to what the first did.

        `names` has those that may be repeats, by position. What came to 0 or to a refusal was
        taken by nobody, and is tried afresh.
        """
        if not names or not self._window:
            return deliver(batch)
        marks = list(map(hash, names.values()))
        if self._all_new(marks):
            taken = deliver(batch)
        else:
            taken = self._deliver_new(batch, dict(zip(names, marks, strict=True)), deliver)
        self._remember(marks, taken if len(names) == len(taken) else [taken[at] for at in names])
        return taken

    def _all_new(self, marks: Sequence[int]) -> bool:
        return (
            self._young.keys().isdisjoint(marks)
            and self._old.keys().isdisjoint(marks)
            and len(set(marks)) == len(marks)
        )

    def _deliver_new(
        self, batch: Sequence[Addressed], marks: Mapping[int, int], deliver: Deliver
    ) -> Taken:
        first: dict[int, int] = {}  # mark → position of the first in this batch
        known: dict[int, int] = {}  # position → result in an earlier batch
        twins: dict[int, int] = {}  # position → that of the first, in this batch
        for at, mark in marks.items():
            if result := self._young.get(mark) or self._old.get(mark):
                known[at] = result
            elif (earlier := first.setdefault(mark, at)) != at:
                twins[at] = earlier
        metrics.REPEATS.inc(len(known) + len(twins))
        new = [each for at, each in enumerate(batch) if at not in known and at not in twins]
        results = iter(deliver(new))
        taken: Taken = []
        for at in range(len(batch)):
            taken.append(taken[twins[at]] if at in twins else known.get(at) or next(results))
        return taken

    def _remember(self, marks: Sequence[int], results: Taken) -> None:
        delivered = {
            mark: result
            for mark, result in zip(marks, results, strict=True)
            if isinstance(result, int) and result
        }
        if len(self._young) + len(delivered) <= self._window:
            self._young.update(delivered)
            return
        surplus = max(0, len(delivered) - self._window)
        self._old = self._young
        self._young = dict(islice(delivered.items(), surplus, None)) if surplus else delivered
