"""Answers of Kafka's brokers: about themselves, topics and a group.

Uses privates of aiokafka: `_client`, which knows the addresses of brokers, and
`_send_request_to_node`, since its admin client sends no Produce request
(tests/unit/test_privates.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.errors import NoError, for_code
from aiokafka.protocol.produce import ProduceRequest

from processor.reading.kafka import AIOKafkaAdminClient

_ACKS_OF_ALL: Final = -1
_NOBODY: Final = -1  # the leader of a partition without one
_PRODUCE_MS: Final = 2_000
#: Refusals of an empty set of records (INVALID_RECORD, CORRUPT_MESSAGE, UNKNOWN_SERVER_ERROR of
#: older versions): a broker gives them after the check of the account's rights.
_REFUSED_AS_EMPTY: Final = frozenset({87, 2, -1, 0})


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: ids of the leader (None: no leader), of replicas, of replicas in sync."""

    number: int
    leader: int | None
    replicas: Sequence[int]
    in_sync: Sequence[int]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Addresses of brokers, by id, and partitions of topics, as far as the account may see."""

    brokers: Mapping[int, tuple[str, int]]
    topics: Mapping[str, Sequence[Partition]]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: the state in Kafka's words, and the number of members."""

    state: str
    members: int


async def cluster_of(admin: AIOKafkaAdminClient) -> Cluster:
    """Return the cluster; asking for all topics creates none.

    Raises:
        KafkaError: no broker answers.
    """
    topics = await admin.describe_topics()
    client: Any = admin._client
    return Cluster(
        {each.nodeId: (each.host, each.port) for each in client.cluster.brokers()},
        {topic["topic"]: [_partition(each) for each in topic["partitions"]] for topic in topics},
    )


async def group_of(admin: AIOKafkaAdminClient, name: str) -> Group:
    """Return a consumer group.

    Raises:
        KafkaError: no broker answers, or the account may not know.
    """
    (response,) = await admin.describe_consumer_groups([name])
    (group,) = response.to_object()["groups"]
    error = for_code(group["error_code"])
    if error is not NoError:
        raise error(name)
    return Group(group["state"], len(group["members"]))


async def refusal_of_writes(
    admin: AIOKafkaAdminClient, topic: str, partition: Partition
) -> str | None:
    """Return how the leader of a partition refuses writes; None where this account may write.

    Nothing is written: the set of records is empty, which a broker refuses after the check of the
    account's rights.

    Raises:
        KafkaError: the leader does not answer.
    """
    request = ProduceRequest(None, _ACKS_OF_ALL, _PRODUCE_MS, [(topic, [(partition.number, b"")])])
    sender: Any = admin
    response = await sender._send_request_to_node(partition.leader, request)
    _, [(_, code, *_)] = response.topics[0]
    return None if code in _REFUSED_AS_EMPTY else str(for_code(code).__name__)


def _partition(described: Mapping[str, Any]) -> Partition:
    leader = described["leader"]
    return Partition(
        described["partition"],
        None if leader == _NOBODY else leader,
        described["replicas"],
        described["isr"],
    )
