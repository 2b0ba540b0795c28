"""A traced record, from the publisher's span to the connection, as a collector sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.collector import Collector, collector
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PUBLISHER = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PUBLISHER}-01"}
NOT_SAMPLED = {"traceparent": f"00-{'b' * 32}-{PUBLISHER}-00"}


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as made:
        yield made


async def test_spans_of_processor_and_gateway_follow_the_publishers_and_the_batch_links_to_them(
    collecting: Collector,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(otlp_endpoint=collecting.endpoint, drain_seconds=0)
    processor = start_processor(otlp_endpoint=collecting.endpoint)
    async with connect("ws-v1", gateway.port, user) as client:
        for headers in (NOT_SAMPLED, {}, {"traceparent": "nonsense"}):
            await publish(backend, topic, user, b"not traced", headers)
        place = await publish(backend, topic, user, b"traced", SAMPLED)
        while (await client.message()).payload != b"traced":
            pass
    # The end of a process sends its last spans.
    assert processor.terminate() == 0
    assert gateway.terminate() == 0
    await eventually(lambda: len(collecting.spans) >= 3, "three spans are sent")
    assert {span.service for span in collecting.spans} == {"pushgate-processor", "pushgate-gateway"}
    (process,) = collecting.named(f"process {topic}")
    (forward,) = collecting.named("forward")
    (deliver,) = collecting.named("deliver")
    assert (process.trace_id, process.parent_id) == (TRACE, PUBLISHER)
    assert (deliver.trace_id, deliver.parent_id) == (TRACE, process.span_id)
    assert forward.links == [(TRACE, process.span_id)]
    assert (forward.trace_id != TRACE, forward.parent_id) == (True, "")
    assert not any(span.failed for span in collecting.spans)
    assert process.attributes["messaging.message.id"] == place
    assert process.attributes["pushgate.outcome"] == "delivered"
    assert deliver.attributes["pushgate.connections"] == 1
    assert user not in str(collecting.spans)


async def test_a_traced_message_goes_through_a_gateway_that_does_not_trace_and_back(
    collecting: Collector,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(drain_seconds=0)
    processor = start_processor(otlp_endpoint=collecting.endpoint, trace_share=1.0)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"of the share")
        assert (await client.message()).payload == b"of the share"
    assert processor.terminate() == 0
    await eventually(lambda: len(collecting.spans) >= 2, "two spans are sent")
    (process,) = collecting.named(f"process {topic}")
    assert process.parent_id == ""
    assert {span.name for span in collecting.spans} == {process.name, "forward"}


async def test_a_collector_that_is_away_delays_no_message_and_no_stop(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    with collector() as gone:
        endpoint = gone.endpoint
    gateway = start_gateway(otlp_endpoint=endpoint, drain_seconds=0)
    processor = start_processor(otlp_endpoint=endpoint)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"traced", SAMPLED)
        assert (await client.message()).payload == b"traced"
    assert processor.terminate() == 0
    assert gateway.terminate() == 0
