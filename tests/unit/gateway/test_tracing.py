"""Spans of deliveries on a node: children of the processor's, one for each traced message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.connections.as_of import AsOf
from gateway.connections.hub import Hub
from gateway.connections.repeats import Repeats
from gateway.tracing import TracedPusher
from registry.tracing import Tracing
from tests.unit.gateway.fakes import FakeConnection, identity

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Rig:
    """A node where alice is connected, with an exporter that keeps what has ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        hub = Hub()
        self.alice = FakeConnection(identity("alice"))
        hub.add(self.alice)
        self.pusher = TracedPusher(
            hub,
            Repeats(0),
            AsOf(),
            epoch="e1",
            max_payload_bytes=64,
            tracing=Tracing("test", "t-1", SimpleSpanProcessor(self.exporter)),
            node="gw-a",
        )

    async def push(self, *items: dict[str, Any]) -> list[Any]:
        body = msgspec.msgpack.encode([{"user": "alice", "data": b"x", **item} for item in items])
        _, answer = await self.pusher.batch(b"application/msgpack", body)
        results: list[Any] = msgspec.msgpack.decode(answer)["results"]
        return results

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()


async def test_a_delivery_has_a_span_below_the_processors() -> None:
    rig = Rig()
    assert await rig.push({"id": "m-1", "traceparent": SAMPLED}, {"id": "m-2"}) == [1, 1]
    (span,) = rig.ended
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.attributes == {
        "messaging.system": "pushgate",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.message.id": "m-1",
        "pushgate.node": "gw-a",
        "pushgate.connections": 1,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"user": "bob"}, None),
        ({"device": "phone"}, "no-device"),
        ({"data": b"x" * 65}, "too-large"),
    ],
)
async def test_a_message_that_is_not_taken_has_a_span_too(
    fields: dict[str, Any], error: str | None
) -> None:
    rig = Rig()
    await rig.push({"traceparent": SAMPLED, **fields})
    (span,) = rig.ended
    assert span.attributes is not None
    assert span.attributes["pushgate.connections"] == 0
    assert span.attributes.get("error.type") == error
    assert span.status.is_unset is (error is None)


@pytest.mark.parametrize("traceparent", ["nonsense", f"00-{TRACE}-{PARENT}-00", None])
async def test_what_is_not_sampled_has_none(traceparent: str | None) -> None:
    rig = Rig()
    assert await rig.push({"traceparent": traceparent}) == [1]
    assert not rig.ended


async def test_a_boundary_has_none_and_an_item_of_a_wrong_shape_neither() -> None:
    rig = Rig()
    await rig.push({"id": "m", "boundary": True, "traceparent": SAMPLED})
    assert (await rig.push({"user": 1, "traceparent": SAMPLED}))[0] == {"error": "invalid"}
    assert not rig.ended
