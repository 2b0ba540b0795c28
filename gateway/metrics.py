"""A gateway's metrics: names in one place, labels of low cardinality, never a user id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from gateway.latency import Latency
from registry.metrics import ProcessCollector
from registry.status import Samples, samples_of

__all__ = ["CONTENT_TYPE_LATEST"]

_registry = CollectorRegistry()

CONNECTIONS = Gauge(
    "pushgate_gateway_connections",
    "Held connections (long-poll: sessions).",
    ["transport"],
    registry=_registry,
)
CONNECTIONS_LIMIT = Gauge(
    "pushgate_gateway_connections_limit",
    "The most connections that this node holds (PUSHGATE_MAX_CONNECTIONS, or what the limit of "
    "file descriptors allows).",
    registry=_registry,
)
SOCKETS = Gauge(
    "pushgate_gateway_sockets",
    "Open sockets of the public port: held connections, parked polls, and requests.",
    registry=_registry,
)
SOCKETS_LIMIT = Gauge(
    "pushgate_gateway_sockets_limit",
    "The most sockets of the public port: the limit of file descriptors, less a margin.",
    registry=_registry,
)
MEMORY_LIMIT = Gauge(
    "pushgate_gateway_memory_limit_bytes",
    "The memory mark, from which on new connections are refused "
    "(PUSHGATE_MAX_MEMORY_BYTES, or nine tenths of the control group's limit); 0 for none.",
    registry=_registry,
)
SHORT_OF_MEMORY = Gauge(
    "pushgate_gateway_short_of_memory",
    "1 while the memory mark is reached: new connections are refused.",
    registry=_registry,
)
READY = Gauge(
    "pushgate_gateway_ready",
    "1 while /readyz answers 200: new connections are taken.",
    registry=_registry,
)
DRAINING = Gauge(
    "pushgate_gateway_draining",
    "1 while this node drains.",
    registry=_registry,
)
DRAIN_LEFT = Gauge(
    "pushgate_gateway_drain_left_seconds",
    "Time until the drain's window ends; 0 without a drain.",
    registry=_registry,
)
DRAIN_TOLD = Gauge(
    "pushgate_gateway_drain_told_clients",
    "Clients that the drain has told to reconnect; 0 without a drain.",
    registry=_registry,
)
HANDSHAKE_SECONDS = Histogram(
    "pushgate_gateway_handshake_seconds",
    "Time from the head of a request to its 101 or 200, for new connections: token, limits and "
    "the registry, which is waited for for a second at most.",
    ["transport"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    registry=_registry,
)
OPENED = Counter(
    "pushgate_gateway_connections_opened_total",
    "Connections that were opened.",
    ["transport"],
    registry=_registry,
)
CLOSED = Counter(
    "pushgate_gateway_connections_closed_total",
    "Connections that ended, by reason.",
    ["transport", "reason"],
    registry=_registry,
)
#: Metrics of alerts and of autoscaling begin at 0: a counter that begins with the first event shows
#: Prometheus no increase for the event, and a comparison with a missing series is no alert.
for _transport in ("websocket", "sse", "poll"):
    CONNECTIONS.labels(_transport)
    OPENED.labels(_transport)
    CLOSED.labels(_transport, "failed")
DROPPED = Counter(
    "pushgate_gateway_dropped_total",
    "Messages dropped unsent to make room for newer ones (PUSHGATE_SLOW_CONSUMER=drop-oldest).",
    ["transport"],
    registry=_registry,
)
UNSENT_AT_CLOSE = Counter(
    "pushgate_gateway_unsent_at_close_total",
    "Messages that a connection had taken, and had not handed to the kernel when it ended, by the "
    "reason of its end.",
    ["reason"],
    registry=_registry,
)
REFUSED = Counter(
    "pushgate_gateway_refused_total",
    "Requests refused, by port (public, internal), status, and the beginning of the answer's text.",
    ["port", "status", "reason"],
    registry=_registry,
)
CUT_OFF = Counter(
    "pushgate_gateway_cut_off_total",
    "Sockets that were closed without an answer, by port and reason.",
    ["port", "reason"],
    registry=_registry,
)
WAITING_HANDSHAKES = Gauge(
    "pushgate_gateway_waiting_handshakes",
    "Requests for new connections that wait for a turn of the event loop.",
    registry=_registry,
)
TURNS_OVERFLOWS = Counter(
    "pushgate_gateway_turns_overflows_total",
    "Requests for new connections that found the queue of turns full, and began at once.",
    registry=_registry,
)
GAPS = Counter(
    "pushgate_gateway_gaps_total",
    "Times that a client was told that messages may be missing.",
    registry=_registry,
)
PUSHED = Counter(
    "pushgate_gateway_pushed_total",
    "Messages pushed into this node, by result.",
    ["result"],
    registry=_registry,
)
BATCH = Histogram(
    "pushgate_gateway_push_batch_messages",
    "Messages in one internal push.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=_registry,
)
LINKS = Gauge(
    "pushgate_gateway_links",
    "Connections that processors hold to this node, to send batches on.",
    registry=_registry,
)
LINKS_ENDED = Counter(
    "pushgate_gateway_links_ended_total",
    "Connections of processors that ended, by reason.",
    ["reason"],
    registry=_registry,
)
REPEATS = Counter(
    "pushgate_gateway_repeats_total",
    "Messages pushed in again after they were delivered: answered with the first result.",
    registry=_registry,
)
PARTLY_TAKEN = Gauge(
    "pushgate_gateway_partly_taken_messages",
    "Messages that some of a user's connections have taken and others had no room for, remembered "
    "until they come again.",
    registry=_registry,
)
PARTLY_TAKEN_EVICTED = Counter(
    "pushgate_gateway_partly_taken_evicted_total",
    "Partly taken messages that were forgotten for lack of room: if they come again, every "
    "connection of the user gets them.",
    registry=_registry,
)
RESUME_LINKS = Gauge(
    "pushgate_gateway_resume_links",
    "Connections that processors hold to this node, for questions of what clients have missed.",
    registry=_registry,
)
RESUMES = Counter(
    "pushgate_gateway_resumes_total",
    "Clients that came back with a cursor: whole (got everything), gap (a part was not known any "
    "more), timed-out (not everything was answered in a minute), unreadable (a cursor of no "
    "gateway, from the future, or from before the window).",
    ["result"],
    registry=_registry,
)
for _result in ("whole", "gap", "timed-out", "unreadable"):
    RESUMES.labels(_result)
RESUME_SECONDS = Histogram(
    "pushgate_gateway_resume_seconds",
    "Time from the answer to the handshake to the last message that was missed.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60),
    registry=_registry,
)
REPLAYED = Counter(
    "pushgate_gateway_replayed_total",
    "Messages that clients had missed, and got when they came back.",
    registry=_registry,
)
GATE_OVERFLOWS = Counter(
    "pushgate_gateway_gate_overflows_total",
    "Messages refused for clients that come back, since too many wait already behind the answer to "
    "what was missed; they come again.",
    registry=_registry,
)
RECEIPTS_DROPPED = Counter(
    "pushgate_gateway_receipts_dropped_total",
    "Replayed messages without a report in the outcomes topic: the link to the processor that "
    "reports has ended, or the processor does not read.",
    registry=_registry,
)
REGISTRY_PENDING = Gauge(
    "pushgate_gateway_registry_pending_users",
    "Users whose entry is still to be written.",
    registry=_registry,
)
REGISTRY_SECONDS = Histogram(
    "pushgate_gateway_registry_seconds",
    "Calls of the registry: heartbeat (the lease), write (a batch of entries); also failed ones.",
    ["call"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=_registry,
)
REGISTRY_OUT_OF_ORDER = Gauge(
    "pushgate_gateway_registry_out_of_order",
    "1 while the registry does not answer, or refuses writes.",
    registry=_registry,
)
REGISTRY_ERRORS = Counter(
    "pushgate_gateway_registry_errors_total",
    "Registry commands that failed.",
    registry=_registry,
)
REGISTRY_REASSERTED = Counter(
    "pushgate_gateway_registry_reasserted_total",
    "Times that every user was registered again: an outage, a lapsed lease, lost keys.",
    registry=_registry,
)
REGISTRY_NAME_TAKEN = Gauge(
    "pushgate_gateway_registry_name_taken",
    "1 while another process has this node's name: nobody finds who is connected here.",
    registry=_registry,
)

TAKEN_OVER = Gauge(
    "pushgate_gateway_taken_over_connections",
    "Connections that this process has taken over from the one before (PUSHGATE_TAKEOVER_SOCKET).",
    registry=_registry,
)
DRAINED_INSTEAD = Gauge(
    "pushgate_gateway_takeover_drained_users",
    "Users with connections that could not be taken over (TLS, the transport wire): the process "
    "before drained them.",
    registry=_registry,
)
TAKEOVER_SECONDS = Gauge(
    "pushgate_gateway_takeover_seconds",
    "How long the take-over by this process has lasted, from its greeting to the goodbye.",
    registry=_registry,
)
TAKEOVER_PAUSE_SECONDS = Gauge(
    "pushgate_gateway_takeover_longest_pause_seconds",
    "The longest time in that take-over for which a connection was with neither process.",
    registry=_registry,
)


class _LatencyCollector(Collector):
    """Tells the latencies of deliveries at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram, and the counters of messages that are not in it."""
        seconds = HistogramMetricFamily(
            "pushgate_gateway_delivery_seconds",
            "Time from the timestamp of a message's record to its write to connections: all have "
            "the message in the kernel or in their buffer. Without repeats and replays.",
            labels=["topic"],
        )
        ahead = CounterMetricFamily(
            "pushgate_gateway_delivery_ahead_total",
            "Messages delivered before their record's timestamp, by this node's clock: clocks "
            "differ. They are not in pushgate_gateway_delivery_seconds.",
            labels=["topic"],
        )
        for topic, times in LATENCY.by_topic().items():
            seconds.add_metric([topic], times.buckets(), times.sum_ms / 1_000)
            ahead.add_metric([topic], times.ahead)
        yield seconds
        yield ahead
        yield CounterMetricFamily(
            "pushgate_gateway_delivery_untimed_total",
            "Messages delivered whose record's timestamp is not known: pushed into this node "
            "directly, or by a processor of an earlier version, or the record has none.",
            LATENCY.untimed,
        )


class _StatesCollector(Collector):
    """Tells the states of connections at each scrape."""

    def __init__(self) -> None:
        #: Returns how many connections there are, by transport and state.
        self.read: Callable[[], Mapping[tuple[str, str], int]] = dict

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge."""
        states = GaugeMetricFamily(
            "pushgate_gateway_connections_by_state",
            "Held connections, by state: opening (the registry is waited for), open, parting (the "
            "client is told to reconnect).",
            labels=["transport", "state"],
        )
        for labels, number in self.read().items():
            states.add_metric(labels, number)
        yield states


STATES: Final = _StatesCollector()
#: How long messages take from their record to connections; counted for every message.
LATENCY: Final = Latency()
for _collector in (STATES, _LatencyCollector(), ProcessCollector()):
    _registry.register(_collector)


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus's text format."""
    return generate_latest(_registry)


def samples() -> Samples:
    """Return all metrics of this process for the answer to `GET /status`."""
    return samples_of(_registry.collect())
