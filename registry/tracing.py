"""Spans of gateways and processors, by OpenTelemetry, and their way to a collector.

This file, `processor/tracing.py` and `gateway/tracing.py` alone import OpenTelemetry, the packages
of the extra `tracing`. The three are imported only where PUSHGATE_OTLP_ENDPOINT is set.

A message is traced where its record's `traceparent` (W3C Trace Context) is sampled, or, without a
traceparent, in the share of PUSHGATE_TRACE_SHARE. A span begins only for a traced message, or for a
batch with traced messages: so the provider samples every span.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from registry.process import VERSION

#: Links of a span at most: a batch has up to a thousand messages, and a link for a traced message.
MOST_LINKS: Final = 128
#: The most spans that wait for the collector, and of a request. Further spans are dropped.
_QUEUE_SPANS: Final = 8_192
_REQUEST_SPANS: Final = 512
#: How long a collector may take to answer a request, retries included.
_EXPORT_SECONDS: Final = 2.0
#: How long the end of a process waits for its last spans.
_END_SECONDS: Final = 1.0
_TRACES_PATH: Final = "/v1/traces"

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """The spans of one process."""

    def __init__(self, service: str, instance: str, spans: SpanProcessor) -> None:
        """`service` and `instance` name the process in traces; `spans` takes ended spans."""
        resource = Resource.create(
            {
                "service.name": service,
                "service.instance.id": instance,
                "service.version": VERSION,
            }
        )
        self._provider = TracerProvider(
            resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(spans)
        self.tracer: trace.Tracer = self._provider.get_tracer("pushgate")

    async def end(self) -> None:
        """Send the last spans; give up after a second; the event loop goes on meanwhile."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            # A shutdown alone leaves the last spans a tenth of a second.
            self._provider.force_flush()
            self._provider.shutdown()
            with suppress(RuntimeError):  # the wait, and the event loop, have ended
                loop.call_soon_threadsafe(ended.set)

        # A daemon: a collector that does not answer must not keep the process.
        threading.Thread(target=end, daemon=True).start()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await ended.wait()
        except TimeoutError:
            return


def by_otlp(endpoint: str) -> SpanProcessor:
    """Return a sender of spans to a collector, by OTLP over HTTP, in a thread of its own.

    `endpoint` is the collector's URL without the path of traces.
    """
    session = requests.Session()
    session.trust_env = False  # no proxy of the environment's: as other calls of pushgate's
    url = f"{endpoint.rstrip('/')}{_TRACES_PATH}"
    exporter = OTLPSpanExporter(url, timeout=_EXPORT_SECONDS, session=session)
    return BatchSpanProcessor(
        exporter, max_queue_size=_QUEUE_SPANS, max_export_batch_size=_REQUEST_SPANS
    )


def sampled(traceparent: str | None) -> Context | None:
    """Return the context of a traceparent; None unless it is valid and sampled (§3.2).

    A bad traceparent is ignored, as the standard asks (§4.3).
    """
    if traceparent is None:
        return None
    context = _propagator.extract({"traceparent": traceparent})
    span = trace.get_current_span(context).get_span_context()
    return context if span.is_valid and span.trace_flags.sampled else None


def traceparent_of(span: trace.Span) -> str:
    """Return the traceparent of a span."""
    fields: dict[str, str] = {}
    _propagator.inject(fields, trace.set_span_in_context(span))
    return fields["traceparent"]


def links_to(traceparents: Iterable[str]) -> list[trace.Link]:
    """Return links to the spans of traceparents."""
    contexts = (sampled(each) for each in traceparents)
    return [
        trace.Link(trace.get_current_span(context).get_span_context())
        for context in contexts
        if context is not None
    ]
