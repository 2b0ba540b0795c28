"""Heartbeats that prove ownership: a real group accepts its members, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from processor.reading.kafka import is_accepted, until_reached
from tests.support.clients import eventually
from tests.support.kafka import KafkaServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def member(kafka: KafkaServer, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Give the only member of a group, with its partitions."""
    consumer = AIOKafkaConsumer(
        topic,
        group_id=f"group-{topic}",
        bootstrap_servers=kafka.bootstrap,
        enable_auto_commit=False,
    )
    await until_reached(consumer.start, bootstrap=kafka.bootstrap)
    try:
        await eventually(consumer.assignment, "it has partitions", timeout_seconds=20.0)
        yield consumer
    finally:
        await consumer.stop()


async def test_a_group_accepts_its_member(member: AIOKafkaConsumer) -> None:
    assert await is_accepted(member)


@pytest.mark.usefixtures("real_kafka")
async def test_a_group_refuses_a_member_of_an_earlier_generation(member: AIOKafkaConsumer) -> None:
    coordinator: Any = member._coordinator
    coordinator.generation -= 1
    try:
        assert not await is_accepted(member)
        assert coordinator.member_id, "a refusal is for aiokafka's own heartbeat to act on"
    finally:
        coordinator.generation += 1
    assert await is_accepted(member)


@pytest.mark.usefixtures("real_kafka")
async def test_a_group_refuses_a_member_that_it_has_given_up(member: AIOKafkaConsumer) -> None:
    coordinator: Any = member._coordinator
    generation, member_id = coordinator.generation, coordinator.member_id
    await coordinator._maybe_leave_group()
    coordinator.generation, coordinator.member_id = generation, member_id
    assert not await is_accepted(member)
