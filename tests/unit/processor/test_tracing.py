"""Spans of messages in hand: which are made, what they say, and that none stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from processor.reading.kafka import TopicPartition, unreadable
from processor.reading.message import Message, Rejection
from processor.reading.progress import Progress
from processor.sending.forward import TIMEOUT, Answer
from processor.tracing import Traces
from registry.directory import Node
from registry.message import Envelope, Push, RejectedRecord
from registry.tracing import MOST_LINKS, Tracing, traceparent_of

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
NODE = Node("gw-a", "e1", "127.0.0.1:8081")
PROGRESS = Progress(TopicPartition("push", 3), lane=0)


class Rig:
    """Traces with an exporter that keeps what has ended."""

    def __init__(self, *, share: float = 0.0, drawn: float = 0.5) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing("test", "t-1", SimpleSpanProcessor(self.exporter))
        self.traces = Traces(self.tracing, group="g", share=share, draw=lambda: drawn)

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()


def record(
    *traceparents: bytes | None, offset: int = 7
) -> ConsumerRecord[bytes | None, bytes | None]:
    # A null header is against aiokafka's types, and comes all the same.
    headers: Any = tuple(("traceparent", value) for value in traceparents)
    return ConsumerRecord(
        "push", 3, offset, 1_000, 0, b"alice", b"hello", None, 5, 5, headers=headers
    )  # fmt: skip


def message(traceparent: str | None, progress: Progress = PROGRESS) -> Message:
    push = Push("alice", b"hello", "m-1", position="push-3-7", traceparent=traceparent)
    return Message(Envelope(push, 1_000), progress, 7)


def test_the_last_traceparent_of_a_record_is_read_with_the_message() -> None:
    read = Traces.read(record(b"x", SAMPLED.encode()), 1_000, 64)
    assert read.push.traceparent == SAMPLED
    assert (read.push.user, read.push.data, read.push.id) == ("alice", b"hello", "push-3-7")


@pytest.mark.parametrize("values", [(), (None,), (b"0" * 200,)])
def test_a_record_without_a_traceparent_is_a_message_all_the_same(
    values: Sequence[bytes | None],
) -> None:
    assert Traces.read(record(*values), 1_000, 64).push.traceparent is None


def test_a_message_has_a_span_from_its_intake_to_its_outcome() -> None:
    rig, taken = Rig(), message(SAMPLED)
    rig.traces.begin([taken])
    assert not rig.ended
    taken.took = 2
    rig.traces.settled([taken])
    (span,) = rig.ended
    assert (span.name, span.kind) == ("process push", SpanKind.CONSUMER)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == f"{span.parent.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "push",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "messaging.consumer.group.name": "g",
        "messaging.message.id": "m-1",
        "messaging.message.body.size": 5,
        "pushgate.outcome": "delivered",
        "pushgate.connections": 2,
    }
    assert span.status.is_unset
    # The gateway's span is to be a child of this one.
    assert taken.push.traceparent == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert not rig.traces._spans


def test_a_failed_message_has_a_failed_span_although_its_payload_is_dropped() -> None:
    rig, taken = Rig(), message(SAMPLED)
    rig.traces.begin([taken])
    taken.drop_payload()
    taken.failure = "timeout"
    rig.traces.settled([taken])
    (span,) = rig.ended
    assert span.attributes is not None
    assert span.attributes["error.type"] == "timeout"
    assert not span.status.is_ok
    assert not span.status.is_unset


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE}-{PARENT}-00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "nonsense",
        "",
    ],
)
def test_what_is_not_sampled_is_not_traced_whatever_the_share(traceparent: str) -> None:
    rig, taken = Rig(share=1.0), message(traceparent)
    rig.traces.begin([taken])
    assert taken.push.traceparent is None
    rig.traces.settled([taken])
    assert not rig.ended


@pytest.mark.parametrize(
    ("drawn", "traced"), [(0.0, True), (0.09, True), (0.1, False), (0.9, False)]
)
def test_a_share_of_messages_without_a_traceparent_is_traced(drawn: float, traced: bool) -> None:
    rig, taken = Rig(share=0.1, drawn=drawn), message(None)
    rig.traces.begin([taken])
    rig.traces.settled([taken])
    assert len(rig.ended) == traced
    assert all(span.parent is None for span in rig.ended)


def test_a_rejected_record_has_a_failed_span() -> None:
    rig = Rig()
    records = [record(SAMPLED.encode()), record(), unreadable(TopicPartition("push", 3), 8)]
    error = RejectedRecord("push-ttl", "whole seconds")
    rig.traces.rejected([Rejection(PROGRESS, each, error, 1_000) for each in records])
    (span,) = rig.ended
    assert span.attributes is not None
    assert span.attributes["pushgate.outcome"] == "rejected"
    assert span.attributes["error.type"] == "push-ttl"


def test_what_another_processor_gets_again_has_no_outcome_here() -> None:
    rig, progress = Rig(), Progress(TopicPartition("push", 3), lane=0)
    taken = message(SAMPLED, progress)
    rig.traces.begin([taken])
    progress.lost = True
    rig.traces.settled([taken])
    error = RejectedRecord("push-ttl", "whole seconds")
    rig.traces.rejected([Rejection(progress, record(SAMPLED.encode()), error, 1_000)])
    (span,) = rig.ended
    assert span.attributes is not None
    assert "pushgate.outcome" not in span.attributes
    assert span.status.is_unset
    assert not rig.traces._spans


class FakeForwarder:
    """Answers each batch alike, and remembers it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.batches: list[Sequence[Push]] = []

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        self.batches.append(pushes)
        return self.answer


async def test_a_batch_with_traced_messages_has_a_span_with_links() -> None:
    rig, inner = Rig(), FakeForwarder([1, 0])
    pushes = [Push("alice", b"1", "m-1", traceparent=SAMPLED), Push("bob", b"2", "m-2")]
    with rig.tracing.tracer.start_as_current_span("another") as current:
        assert await rig.traces.around_forwarder(inner).forward(NODE, pushes) == [1, 0]
    assert inner.batches == [pushes]
    span = rig.ended[0]
    assert (span.name, span.kind, span.parent) == ("forward", SpanKind.CLIENT, None)
    assert [f"{link.context.span_id:016x}" for link in span.links] == [PARENT]
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 2
    assert traceparent_of(current) not in (SAMPLED, "")


async def test_a_batch_without_traced_messages_has_none() -> None:
    rig, inner = Rig(), FakeForwarder([1])
    assert await rig.traces.around_forwarder(inner).forward(NODE, [Push("bob", b"2", "m")]) == [1]
    assert await rig.traces.around_forwarder(inner).forward(NODE, []) == [1]
    assert not rig.ended


async def test_a_forward_without_an_answer_has_a_failed_span_and_links_are_bounded() -> None:
    rig = Rig()
    pushes = [Push("alice", b"1", f"m-{n}", traceparent=SAMPLED) for n in range(MOST_LINKS + 1)]
    assert (
        await rig.traces.around_forwarder(FakeForwarder(TIMEOUT)).forward(NODE, pushes) == TIMEOUT
    )
    (span,) = rig.ended
    assert len(span.links) == MOST_LINKS
    assert span.attributes is not None
    assert span.attributes["error.type"] == "timeout"
    assert span.attributes["pushgate.traced_messages"] == MOST_LINKS + 1
