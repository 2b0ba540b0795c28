"""Claims: settled offsets of a lost partition, handed to the partition's next owner.

A commit can fail for good: a broker that was silent for longer than the session time-out gives up
all members, and refuses their commits. Messages that were settled without a commit would then be
sent again, and their outcomes told again. So a member that joins anew claims the offsets that it
has settled, in the user data of its subscription. The leader of the group adds the claims to the
assignments of the partitions' next owners. Kafka defines both fields for such uses (KIP-54 keeps
owned partitions there), and members of earlier versions ignore them. The assignment is still
"roundrobin", so both versions share a group.

A member that stops for good joins no group any more. It leaves its claims in the metadata of its
last commit, as one word of the note (`word_of`); the next owner finds the word with the offset
(`claim_in`).

A claim is a fact of the past, and stays true however late the claim comes, unless offsets are used
again: of a topic that is made anew, or of a group whose offsets are reset while no member is in it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from processor.reading.kafka import (
    ClusterMetadata,
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
    RoundRobinPartitionAssignor,
    TopicPartition,
)
from processor.reading.progress import Progress

#: Most ranges of settled offsets that one member claims: some 12 KB. Kafka keeps the subscriptions
#: and assignments of all members in one record of 1 MB at most. Messages beyond the bound are sent
#: and told again.
_MOST_RANGES: Final = 1_000
#: How the word of a claim begins in the note of a commit.
_WORD: Final = "settled:"


@dataclass(frozen=True, slots=True)
class Settled:
    """The settled offsets of a partition: all offsets before `before`, and the offsets `beyond`."""

    before: int
    beyond: frozenset[int] = frozenset()

    def __or__(self, other: Settled) -> Settled:
        before = max(self.before, other.before)
        beyond = self.beyond | other.beyond
        return Settled(before, frozenset(offset for offset in beyond if offset >= before))


Claims = Mapping[TopicPartition, Settled]


class Handover:
    """One member's claims.

    An assignor of aiokafka's, which calls `metadata` in perform_group_join, after partitions were
    revoked, then `assign` where this member is the leader, and `on_assignment`.
    """

    name = RoundRobinPartitionAssignor.name

    def __init__(self) -> None:
        #: Claims on the assigned partitions: at first those of earlier owners, and then (`give`)
        #: this member's own. They go into every subscription until another assignment comes.
        self.claims: dict[TopicPartition, Settled] = {}

    def give(self, progress: Progress) -> None:
        """Claim the settled offsets of a partition that is taken away."""
        if progress.committable is None:
            return
        own = {
            progress.partition: Settled(progress.committable, frozenset(progress.settled_beyond))
        }
        earlier = self.claims.pop(progress.partition, None)
        # A claim that is ahead of this member's own reading is of offsets before a reset: this
        # member went on from every claim.
        if earlier is not None and earlier.before <= progress.committable:
            own = merged([own, {progress.partition: earlier}])
        self.claims |= own

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return the subscription of this member, with its claims."""
        return ConsumerProtocolMemberMetadata(0, list(topics), encode(self.claims))

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """As the leader of the group, assign partitions in turn; pass the claims on."""
        claims = merged(decode(member.user_data) for member in members.values())
        assignments = RoundRobinPartitionAssignor.assign(cluster, members)
        return {
            member: ConsumerProtocolMemberAssignment(
                assignment.version,
                assignment.assignment,
                encode(_of(assignment.partitions(), claims)),
            )
            for member, assignment in assignments.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take the claims on the assigned partitions; claims on others have been passed on.

        A leader of an earlier version passes no claims on: this member's own claims still count.
        """
        passed_on = decode(assignment.user_data)
        self.claims = _of(assignment.partitions(), merged([self.claims, passed_on]))


def merged(all_claims: Iterable[Claims]) -> dict[TopicPartition, Settled]:
    """Return the claims of several members as one."""
    result: dict[TopicPartition, Settled] = {}
    for claims in all_claims:
        for partition, settled in claims.items():
            result[partition] = result[partition] | settled if partition in result else settled
    return result


def encode(claims: Claims) -> bytes:
    """Return claims as MessagePack: topic, partition, `before`, then the ranges of `beyond`.

    A range is two numbers: its first offset, and its length.
    """
    room = _MOST_RANGES
    rows: list[tuple[str, int, int, list[int]]] = []
    for partition, settled in claims.items():
        ranges = [number for pair in _ranges(settled.beyond) for number in pair][: 2 * room]
        room -= len(ranges) // 2
        rows.append((partition.topic, partition.partition, settled.before, ranges))
    return msgspec.msgpack.encode(rows) if rows else b""


def decode(data: bytes) -> Claims:
    """Return the claims in user data; none where a member of another kind wrote the data."""
    if not data:
        return {}
    try:
        rows = msgspec.msgpack.decode(data, type=list[tuple[str, int, int, list[int]]])
    except msgspec.MsgspecError:
        return {}
    return {
        TopicPartition(topic, partition): Settled(before, _offsets(ranges))
        for topic, partition, before, ranges in rows
    }


def word_of(settled: Settled, *, most_bytes: int) -> str:
    """Return `settled.beyond` as a word of `most_bytes` at most; of many ranges, the first.

    Base64 of MessagePack: for each range its distance from the end of the range before (of the
    first range, from `settled.before`), and its length.
    """
    numbers: list[int] = []
    end = settled.before
    for first, length in islice(_ranges(settled.beyond), _MOST_RANGES):
        numbers += (first - end, length)
        end = first + length
    while numbers:
        word = _WORD + b64encode(msgspec.msgpack.encode(numbers)).decode()
        if len(word) <= most_bytes:
            return word
        del numbers[len(numbers) // 4 * 2 :]
    return ""


def claim_in(note: str, before: int) -> Settled | None:
    """Return the claim in the note of a commit of the offset `before`; None where there is none."""
    word = next((word for word in note.split(" ") if word.startswith(_WORD)), "")
    try:
        data = b64decode(word.removeprefix(_WORD), validate=True)
        numbers = msgspec.msgpack.decode(data, type=list[int]) if word else []
    except (ValueError, msgspec.MsgspecError):
        return None
    ranges: list[int] = []
    end = before
    for distance, length in zip(numbers[::2], numbers[1::2], strict=False):
        ranges += (end + distance, length)
        end += distance + length
    return Settled(before, _offsets(ranges)) if ranges else None


def _of(partitions: Collection[TopicPartition], claims: Claims) -> dict[TopicPartition, Settled]:
    return {each: claims[each] for each in partitions if each in claims}


def _ranges(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    first, length = 0, 0
    for offset in sorted(offsets):
        if length and offset == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = offset, 1
    if length:
        yield first, length


def _offsets(ranges: list[int]) -> frozenset[int]:
    pairs = zip(ranges[::2], ranges[1::2], strict=False)
    return frozenset(offset for first, length in pairs for offset in range(first, first + length))
