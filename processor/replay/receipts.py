"""Receipts: gateways say which messages of an answer connections have taken.

These messages are reported once more, in the topic for outcomes. A receipt has the places of
messages alone, so user, id and device are kept from the answer on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from processor import metrics
from processor.outcomes.outcomes import Replayed
from registry.directory import Node
from registry.resume import Answer, Receipt

#: How long an answered message is kept for a receipt. Gateways send receipts four times a second;
#: a slow client takes a long answer in seconds.
_KEEP_SECONDS: Final = 60.0
#: Answered messages without a receipt, for all gateways: 28 MB. Beyond, the oldest are forgotten.
_MOST_KEPT: Final = 65_536
#: How many messages of an answer are kept in one turn of the event loop: some 2 ms.
_MESSAGES_A_TURN: Final = 1_000

#: Reports replayed messages.
ReportReplayed = Callable[[Sequence[Replayed]], None]


class _Answered(msgspec.Struct, gc=False):
    """The fields of an answered message (`Push`) that a report needs."""

    user: str
    id: str
    device: str | None = None
    position: str | None = None


class _Kept(NamedTuple):
    """A message without a receipt: the time of the last answer, and the number of answers."""

    message: _Answered
    at: float
    answers: int


_decode: Final = msgspec.msgpack.Decoder(_Answered).decode


class Receipts:
    """Reports the messages in receipts, as far as this processor has answered with them."""

    def __init__(
        self, report: ReportReplayed, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds."""
        self._report = report
        self._clock = clock
        #: By gateway and position, the last answered last.
        self._kept: dict[tuple[Node, str], _Kept] = {}

    async def keep(self, node: Node, answer: Answer) -> None:
        """Keep the messages of an answer to a gateway until the receipt."""
        messages = [message for replay in answer.replays for message in replay.messages]
        for start in range(0, len(messages), _MESSAGES_A_TURN):
            if start:
                await asyncio.sleep(0)
            for message in messages[start : start + _MESSAGES_A_TURN]:
                self._keep(node, _decode(message))

    def _keep(self, node: Node, message: _Answered) -> None:
        if message.position is None:
            return
        place = (node, message.position)
        # Two connections of the user have asked, and both take the message.
        before = self._kept.pop(place, None)
        answers = 1 if before is None else before.answers + 1
        self._kept[place] = _Kept(message, self._clock(), answers)
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def take(self, node: Node, receipt: Receipt) -> None:
        """Report the messages in a gateway's receipt; forgotten ones are counted."""
        replayed: list[Replayed] = []
        forgotten = 0
        for topic, partition, offset in _places(receipt):
            message = self._taken(node, f"{topic}-{partition}-{offset}")
            if message is None:
                forgotten += 1
                continue
            user, message_id, device = message.user, message.id, message.device
            place = (topic, partition, offset)
            replayed.append(Replayed(user, message_id, device, node.name, *place))
        metrics.REPLAYS_UNREPORTED.labels("forgotten").inc(forgotten)
        self._report(replayed)

    def _taken(self, node: Node, position: str) -> _Answered | None:
        """Return a message for a connection that has taken it; None for a forgotten message."""
        kept = self._kept.get((node, position))
        if kept is None:
            return None
        if kept.answers > 1:
            self._kept[node, position] = kept._replace(answers=kept.answers - 1)
        else:
            del self._kept[node, position]
        return kept.message

    def advance(self) -> None:
        """Forget messages without a receipt for too long. Called every second."""
        oldest = self._clock() - _KEEP_SECONDS
        for place, kept in list(self._kept.items()):
            if kept.at >= oldest:
                break
            del self._kept[place]


def _places(receipt: Receipt) -> Iterator[tuple[str, int, int]]:
    for topic, partition, offsets in receipt.taken:
        for offset in offsets:
            yield topic, partition, offset
