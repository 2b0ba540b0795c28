"""Traced messages on a node: a span for the delivery of each.

The span is a child of the processor's span, which the message names (`Item.traceparent`). Nothing
here is on a message's way where PUSHGATE_OTLP_ENDPOINT is not set: the class stands in the place of
a `Pusher` when the gateway is made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from gateway.connections.as_of import AsOf
from gateway.connections.hub import Hub
from gateway.connections.repeats import Repeats
from gateway.push import BatchDelivery, Item, Pusher, Result
from registry.tracing import Tracing, sampled


class TracedPusher(Pusher):
    """A pusher whose traced messages get spans."""

    def __init__(
        self,
        hub: Hub,
        repeats: Repeats,
        as_of: AsOf,
        *,
        epoch: str,
        max_payload_bytes: int,
        tracing: Tracing,
        node: str,
    ) -> None:
        """`node` is the node's name; all else is as for a `Pusher`."""
        super().__init__(hub, repeats, as_of, epoch=epoch, max_payload_bytes=max_payload_bytes)
        self._tracing = tracing
        self._node = node

    async def push(
        self, items: Sequence[Item | None], under_way: BatchDelivery
    ) -> list[Result | list[Result]]:
        """Push items; return their results in order."""
        began_ns = time.time_ns()
        results = await super().push(items, under_way)
        for item, result in zip(items, results, strict=True):
            if item is None or item.boundary or isinstance(result, list):
                continue
            parent = sampled(item.traceparent)
            if parent is not None:
                self._make_span(item, result, parent, began_ns)
        return results

    def _make_span(self, item: Item, result: Result, parent: Context, began_ns: int) -> None:
        taken = result if isinstance(result, int) else int(result.get("taken", 0))
        span = self._tracing.tracer.start_span(
            "deliver",
            context=parent,
            kind=SpanKind.CONSUMER,
            start_time=began_ns,
            attributes={
                "messaging.system": "pushgate",
                "messaging.operation.name": "deliver",
                "messaging.operation.type": "process",
                "pushgate.node": self._node,
                "pushgate.connections": taken,
            },
        )
        if item.id is not None:
            span.set_attribute("messaging.message.id", item.id)
        if isinstance(result, dict):
            reason = str(result.get("error", "partial"))
            span.set_attribute("error.type", reason)
            span.set_status(Status(StatusCode.ERROR, reason))
        span.end()
