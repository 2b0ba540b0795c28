"""Where a group starts in a topic without committed offsets.

The first topics of a new group start at the end, or at the earliest offset if PUSHGATE_KAFKA_START
says so. The same goes for a topic that exists when its name is added to the setting of a group at
work. The ends are committed before any member reads the topic, so of two processors that start at
once neither skips records that the other would have read.

A topic that was in the setting before it existed always starts at the earliest offset, and so do
partitions that appear later: aiokafka starts there by itself. A note tells such topics from added
ones: while a topic of the setting is missing, its name is in the metadata of the group's commits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from processor.reading.kafka import (
    MAX_NOTE_BYTES,
    AIOKafkaConsumer,
    TopicPartition,
    commit_ends,
    commits_of,
    partitions_of,
)
from processor.settings import ProcessorSettings

_NOTE_PREFIX: Final = "missing:"
#: Less than a commit's note may have.
_MAX_NAMES_BYTES: Final = MAX_NOTE_BYTES // 2

log = structlog.get_logger("processor.starts")


class Starts:
    """Decides, once for a process, where its group starts in new topics."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings
        #: The metadata of every commit: the missing topics.
        self.note = ""
        #: Partitions of new topics whose ends this process could not commit before it was a member.
        self._ends_due: set[TopicPartition] = set()

    async def survey(self) -> None:
        """Find the new topics, and commit their ends unless the group has members already.

        Raises:
            KafkaError: no broker answers, or a request failed.
        """
        settings = self._settings
        partitions = await partitions_of(settings, settings.topics)
        if settings.kafka_start != "end":
            return
        commits = await commits_of(settings, settings.kafka_group, partitions)
        known_topics = {partition.topic for partition in commits}
        noted_topics = {topic for _, note in commits.values() for topic in _topics_in(note)}
        existing_topics = {partition.topic for partition in partitions}
        unread_topics = (noted_topics | set(settings.topics) - existing_topics) - known_topics
        self.note = _note(topic for topic in settings.topics if topic in unread_topics)
        new = [each for each in partitions if each.topic not in known_topics | noted_topics]
        if not new:
            return
        if await commit_ends(settings, settings.kafka_group, new, note=self.note):
            _log_start(new)
        else:
            self._ends_due = set(new)

    async def begin(self, client: AIOKafkaConsumer, assigned: Iterable[TopicPartition]) -> None:
        """Commit the ends of new topics' partitions as a member, before the member reads them.

        Raises:
            KafkaError: an offset could not be read or committed.
        """
        due = [partition for partition in assigned if partition in self._ends_due]
        new = [partition for partition in due if await client.committed(partition) is None]
        if new:
            ends = await client.end_offsets(new)
            await client.commit({partition: (end, self.note) for partition, end in ends.items()})
            for partition, end in ends.items():
                client.seek(partition, end)
            _log_start(new)
        self._ends_due.difference_update(due)


def _log_start(partitions: Iterable[TopicPartition]) -> None:
    topics = sorted({partition.topic for partition in partitions})
    log.info("the group starts at the end of new topics", topics=topics)


def _note(topics: Iterable[str]) -> str:
    """Return the note that names `topics`, as many as fit; the empty string for no topics."""
    names = ""
    for topic in topics:
        longer = f"{names},{topic}" if names else topic
        if len(longer.encode()) <= _MAX_NAMES_BYTES:
            names = longer
    return _NOTE_PREFIX + names if names else ""


def _topics_in(note: str) -> list[str]:
    """Return the topics that a commit's note names; a claim (handover.py) may stand beside them."""
    words = [word for word in note.split(" ") if word.startswith(_NOTE_PREFIX)]
    return words[0].removeprefix(_NOTE_PREFIX).split(",") if words else []
