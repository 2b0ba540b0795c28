"""Traced messages: a span from a message's intake to its outcome, and a span for each forward.

By OpenTelemetry's semantic conventions for messaging: `process` is a consumer's span, the child of
the span that the record's `traceparent` names. A `forward` is a batch, so it has no parent, and a
link to each traced message in it. The gateway's span is a child of `process`: the push has its
name (`Push.traceparent`).

Nothing here is on a message's way where PUSHGATE_OTLP_ENDPOINT is not set: the classes are put
around what they trace when the processor is made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from processor.outcomes.outcome import Kind, outcome_of
from processor.reading.consumer import Intake
from processor.reading.kafka import Record, UnreadableRecord
from processor.reading.message import Message, Rejection, envelope_of
from processor.sending.forward import Answer, Failure
from processor.sending.gateways import Forward
from processor.settings import ProcessorSettings
from registry.directory import Node
from registry.message import Envelope, Push
from registry.tracing import MOST_LINKS, Tracing, by_otlp, links_to, sampled, traceparent_of

_HEADER: Final = "traceparent"
#: A traceparent of the standard's present version has 55 characters; later ones may have more.
_MOST_BYTES: Final = 128


def traced_envelope_of(record: Record, published_ms: int, max_payload_bytes: int) -> Envelope:
    """Read the message in a record, with the record's traceparent.

    Raises:
        RejectedRecord: the record breaks a publishing rule.
    """
    envelope = envelope_of(record, published_ms, max_payload_bytes)
    envelope.push.traceparent = _traceparent_in(record)
    return envelope


def traces_of(settings: ProcessorSettings, endpoint: str) -> Traces:
    """Return the traces of a processor, which a collector gets."""
    tracing = Tracing("pushgate-processor", settings.processor_name, by_otlp(endpoint))
    return Traces(tracing, group=settings.kafka_group, share=settings.trace_share)


class Traces:
    """The spans of the messages in hand, and what is put around parts of a processor for them."""

    def __init__(
        self,
        tracing: Tracing,
        *,
        group: str,
        share: float = 0.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Of messages whose record has no traceparent a `share` (from 0 to 1) is traced.

        `draw` gives numbers from 0 to 1.
        """
        self._tracing = tracing
        self._group = group
        self._share = share
        self._draw = draw
        #: By the traceparent of the push: as many as there are messages in hand at most.
        self._spans: dict[str, Span] = {}

    #: What reads records for a `Consumer`.
    read = staticmethod(traced_envelope_of)

    def around_intake(self, intake: Intake) -> TracedIntake:
        """Return the intake of a `Consumer`: messages get spans, and go on to `intake`."""
        return TracedIntake(intake, self)

    def around_forwarder(self, forwarder: Forward) -> TracedForwards:
        """Return the forwarder of a `Dispatcher`: batches get spans, and go on to `forwarder`."""
        return TracedForwards(forwarder, self._tracing)

    async def end(self) -> None:
        """Send the last spans; the spans of messages without an outcome are lost."""
        await self._tracing.end()

    def begin(self, messages: Iterable[Message]) -> None:
        """Begin the spans of traced messages that are taken in; their pushes get the spans' names.

        A push of a message that is not traced has no traceparent from then on.
        """
        for message in messages:
            push = message.push
            parent = sampled(push.traceparent)
            if parent is None and (push.traceparent is not None or self._draw() >= self._share):
                push.traceparent = None
                continue
            span = self._start(message, parent)
            push.traceparent = traceparent_of(span)
            self._spans[push.traceparent] = span

    def settled(self, messages: Iterable[Message]) -> None:
        """End the spans of settled messages.

        Messages of a partition that was taken away have no outcome here: the partition's next
        processor has them again.
        """
        for message in messages:
            span = self._spans.pop(message.push.traceparent or "", None)
            if span is None:
                continue
            if message.progress.lost:
                span.end()
                continue
            outcome = outcome_of(message)
            span.set_attribute("pushgate.outcome", outcome.name)
            span.set_attribute("pushgate.connections", message.took)
            if outcome.kind is Kind.FAILED:
                _fail(span, outcome.reason)
            span.end()

    def rejected(self, rejections: Iterable[Rejection]) -> None:
        """Make the spans of traced records that were rejected, as `settled` ends those of messages.

        Records of a partition that was taken away have none.
        """
        for rejection in rejections:
            record = rejection.record
            parent = sampled(_traceparent_in(record))
            if parent is None or rejection.progress.lost:
                continue
            place = (record.topic, record.partition, record.offset)
            span = self._span(*place, parent)
            span.set_attribute("pushgate.outcome", Kind.REJECTED.value)
            _fail(span, rejection.error.reason)
            span.end()

    def _start(self, message: Message, parent: Context | None) -> Span:
        partition = message.progress.partition
        span = self._span(partition.topic, partition.partition, message.offset, parent)
        span.set_attribute("messaging.message.id", message.push.id)
        span.set_attribute("messaging.message.body.size", len(message.push.data))
        return span

    def _span(self, topic: str, partition: int, offset: int, parent: Context | None) -> Span:
        return self._tracing.tracer.start_span(
            f"process {topic}",
            # Without a parent: a root, whatever span is current.
            context=parent if parent is not None else Context(),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
                "messaging.consumer.group.name": self._group,
            },
        )


class TracedIntake:
    """An intake whose messages get spans."""

    def __init__(self, intake: Intake, traces: Traces) -> None:
        self._intake = intake
        self._traces = traces

    @property
    def accepted(self) -> bool:
        """Whether any gateway accepts messages."""
        return self._intake.accepted

    async def room(self) -> None:
        """Return when another batch can be taken."""
        await self._intake.room()

    def take(self, messages: Sequence[Message]) -> None:
        """Take messages, in the order in which users are to get them."""
        self._traces.begin(messages)
        self._intake.take(messages)


class TracedForwards:
    """A forwarder whose batches with traced messages get spans."""

    def __init__(self, forwarder: Forward, tracing: Tracing) -> None:
        self._forwarder = forwarder
        self._tracing = tracing

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        """Send pushes to a node; return what the forwarder returns."""
        traced = [push.traceparent for push in pushes if push.traceparent is not None]
        if not traced:
            return await self._forwarder.forward(node, pushes)
        with self._tracing.tracer.start_as_current_span(
            "forward",
            context=Context(),
            kind=SpanKind.CLIENT,
            links=links_to(traced[:MOST_LINKS]),
            attributes={
                "server.address": node.address,
                "pushgate.node": node.name,
                "messaging.batch.message_count": len(pushes),
                "pushgate.traced_messages": len(traced),
            },
        ) as span:
            answer = await self._forwarder.forward(node, pushes)
            if isinstance(answer, Failure):
                _fail(span, answer.reason)
            return answer


def _traceparent_in(record: Record) -> str | None:
    """Return the last traceparent among a record's headers; None for none, and for no text."""
    if isinstance(record, UnreadableRecord):
        return None
    values = [value for name, value in record.headers if name == _HEADER]
    if not values or values[-1] is None or len(values[-1]) > _MOST_BYTES:
        return None
    return values[-1].decode("ascii", "replace")


def _fail(span: Span, reason: str) -> None:
    span.set_attribute("error.type", reason)
    span.set_status(Status(StatusCode.ERROR, reason))
