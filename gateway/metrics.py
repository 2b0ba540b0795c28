"""A gateway's metrics: names in one place, labels of low cardinality, never a user id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST"]

_registry = CollectorRegistry()

CONNECTIONS = Gauge(
    "pushgate_gateway_connections",
    "Held connections (long-poll: sessions).",
    ["transport"],
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


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus's text format."""
    return generate_latest(_registry)
