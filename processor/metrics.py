"""A processor's metrics: names in one place, labels of low cardinality, never a user id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from registry.metrics import ProcessCollector
from registry.status import Samples, samples_of

__all__ = ["CONTENT_TYPE_LATEST"]

_registry = CollectorRegistry()
_registry.register(ProcessCollector())
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

READY = Gauge(
    "pushgate_processor_ready",
    "1 while /readyz answers 200: messages that are published are handled.",
    registry=_registry,
)
OUTCOMES = Counter(
    "pushgate_processor_outcomes_total",
    "What became of messages: every one gets an outcome.",
    ["outcome", "reason"],
    registry=_registry,
)
#: Outcomes that alerts watch begin at 0: a counter that begins with its first event shows
#: Prometheus no increase for the event. docs/troubleshooting.md has all reasons.
for _reason in (
    "key", "value", "too-large", "push-id", "ce_id", "push-type", "ce_type", "push-ttl",
    "push-urgency", "push-collapse-key", "push-device", "ce_source", "ce_time", "unreadable",
):  # fmt: skip
    OUTCOMES.labels("rejected", _reason)
for _reason in (
    "unreachable", "timeout", "refused", "no-link", "overloaded", "outside-networks", "too-large",
    "invalid", "bad-answer", "error", "status-400", "status-413", "status-500",
):  # fmt: skip
    OUTCOMES.labels("failed", _reason)
BATCH = Histogram(
    "pushgate_processor_batch_messages",
    "Records handled in one go.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    registry=_registry,
)
LOOKUP_SECONDS = Histogram(
    "pushgate_processor_lookup_seconds",
    "Registry look-ups, each of a whole batch.",
    buckets=_SECONDS,
    registry=_registry,
)
FORWARD_SECONDS = Histogram(
    "pushgate_processor_forward_seconds",
    "Forwards to a gateway, each of a whole batch.",
    buckets=_SECONDS,
    registry=_registry,
)
FORWARDING = Gauge(
    "pushgate_processor_batches_in_flight",
    "Batches that were sent to gateways, or wait for a connection, and have no answer yet.",
    registry=_registry,
)
LINKS = Gauge(
    "pushgate_processor_links",
    "Connections held to gateways, one for each.",
    registry=_registry,
)
LINKS_ENDED = Counter(
    "pushgate_processor_links_ended_total",
    "Connections to gateways that ended, by reason; the next batch makes a new one.",
    ["reason"],
    registry=_registry,
)
OUTSIDE_NETWORKS = Counter(
    "pushgate_processor_outside_networks_total",
    "Forwards not made: the gateway's address is in none of PUSHGATE_GATEWAY_NETWORKS.",
    registry=_registry,
)
REGISTRY_ERRORS = Counter(
    "pushgate_processor_registry_errors_total",
    "Look-ups that got no answer; the batch waits.",
    registry=_registry,
)
REGISTRY_IN_DOUBT = Gauge(
    "pushgate_processor_registry_in_doubt",
    "1 while the registry may lack entries: users who are not found are unknown, not offline, and "
    "their messages wait.",
    registry=_registry,
)
GATEWAYS = Gauge(
    "pushgate_processor_gateways",
    "Live gateways in the registry.",
    registry=_registry,
)
COMMIT_ERRORS = Counter(
    "pushgate_processor_commit_errors_total",
    "Commits that failed; each is tried again.",
    registry=_registry,
)
LOOKUP_CACHE = Counter(
    "pushgate_processor_lookup_cache_total",
    "Users looked up, by whether they were remembered (PUSHGATE_LOOKUP_CACHE_SECONDS).",
    ["result"],
    registry=_registry,
)
#: By the accessory's name.
ACCESSORY_ERRORS = {
    "outcomes": Counter(
        "pushgate_processor_outcome_errors_total",
        "Attempts to write to the outcomes topic that failed, or found it out of order.",
        registry=_registry,
    ),
    "dead-letter": Counter(
        "pushgate_processor_dead_letter_errors_total",
        "Attempts to write to the dead-letter topic that failed, or found it out of order.",
        registry=_registry,
    ),
}
ACCESSORY_LOST = Counter(
    "pushgate_processor_accessory_lost_total",
    "Records that will never be in the dead-letter or the outcomes topic: beyond what is kept "
    "while the topic can't be written to, too large for the topic, or left at the end.",
    ["topic"],
    registry=_registry,
)
for _topic in ("outcomes", "dead-letter"):
    ACCESSORY_LOST.labels(_topic)
PARTITIONS = Gauge(
    "pushgate_processor_partitions",
    "Partitions that this processor reads.",
    registry=_registry,
)
LAG = Gauge(
    "pushgate_processor_lag_messages",
    "Offsets of a partition from its first message without an outcome to its end in Kafka.",
    ["topic", "partition"],
    registry=_registry,
)
OLDEST_SECONDS = Gauge(
    "pushgate_processor_oldest_seconds",
    "Age of the oldest message in hand without an outcome; 0 where there is none.",
    registry=_registry,
)
IN_HAND = Gauge(
    "pushgate_processor_in_hand_messages",
    "Messages that were read and have no outcome yet.",
    registry=_registry,
)
WAITING = Gauge(
    "pushgate_processor_waiting_messages",
    "Messages that wait: for silent gateways, or for room in the connections of their user.",
    ["for"],
    registry=_registry,
)
WAITING_BYTES = Gauge(
    "pushgate_processor_waiting_silent_bytes",
    "Bytes of the messages that wait for silent gateways.",
    registry=_registry,
)
WAITING_LIMIT = Gauge(
    "pushgate_processor_waiting_silent_limit_messages",
    "The most messages that wait for all silent gateways; further ones fail.",
    registry=_registry,
)
WAITING_LIMIT_BYTES = Gauge(
    "pushgate_processor_waiting_silent_limit_bytes",
    "The most bytes of messages that wait for all silent gateways; further messages fail.",
    registry=_registry,
)
SILENT_GATEWAYS = Gauge(
    "pushgate_processor_silent_gateways",
    "Gateways that do not answer, and whose messages wait, by reason: timeout, unreachable, "
    "refused (the internal secret), no-link (an earlier version, or no gateway).",
    ["reason"],
    registry=_registry,
)
SILENT_SECONDS = Gauge(
    "pushgate_processor_silent_seconds",
    "How long the gateway has not answered that has been silent for the longest; 0 for none.",
    registry=_registry,
)
WAITING_OVERFLOWS = Counter(
    "pushgate_processor_waiting_overflows_total",
    "Messages that failed since too many wait already, by the reason of their outcome.",
    ["reason"],
    registry=_registry,
)
WINDOW_BYTES = Gauge(
    "pushgate_processor_window_bytes",
    "Bytes of the messages at hand for clients that come back (PUSHGATE_RESUME_BYTES).",
    registry=_registry,
)
WINDOW_LIMIT = Gauge(
    "pushgate_processor_window_limit_bytes",
    "The most bytes of messages at hand (PUSHGATE_RESUME_BYTES); 0 where clients don't resume.",
    registry=_registry,
)
WINDOW_SECONDS = Gauge(
    "pushgate_processor_window_seconds",
    "How far back the oldest message at hand for clients that come back was taken in. Older ones, "
    "of PUSHGATE_RESUME_SECONDS, are read again from Kafka.",
    registry=_registry,
)
WINDOW_MESSAGES = Gauge(
    "pushgate_processor_window_messages",
    "Messages that clients can come back for, at hand or to be read again from Kafka.",
    registry=_registry,
)
WINDOW_EVICTED = Counter(
    "pushgate_processor_window_evicted_total",
    "Parts of the messages at hand, of 1 MiB or five seconds each, whose payloads were dropped "
    "before their time for lack of room (PUSHGATE_RESUME_BYTES). They are read again from Kafka.",
    registry=_registry,
)
WINDOW_SHORTENED = Counter(
    "pushgate_processor_window_shortened_total",
    "Parts of the window that were dropped before their time, since more messages than 8,000,000 "
    "came within PUSHGATE_RESUME_SECONDS. Clients that were away for longer are told of a gap.",
    registry=_registry,
)
WAITED_OVERFLOWS = Counter(
    "pushgate_processor_waited_overflows_total",
    "Seconds with messages of more users waiting than are noted: clients that come back are then "
    "asked for from further back, and some may be told of a gap.",
    registry=_registry,
)
RESUME_LINKS = Gauge(
    "pushgate_processor_resume_links",
    "Connections held to gateways for questions of what clients have missed.",
    registry=_registry,
)
READ_BACK = Counter(
    "pushgate_processor_read_back_total",
    "Times that messages were read again from Kafka, since an earlier owner had taken them in.",
    registry=_registry,
)
REPLAYS_UNREPORTED = Counter(
    "pushgate_processor_replays_unreported_total",
    "Replayed messages without a report in the outcomes topic: forgotten (the client took the "
    "message more than a minute after the answer, or too many messages were answered meanwhile), "
    "full (too many reports wait).",
    ["reason"],
    registry=_registry,
)
READ_AGAIN = Counter(
    "pushgate_processor_read_again_messages_total",
    "Messages that were read again from Kafka for clients that came back, since their payloads "
    "were not at hand any more (pushgate_processor_window_evicted_total).",
    registry=_registry,
)
QUESTIONS = Counter(
    "pushgate_processor_questions_total",
    "Questions of gateways: what has a user got since a cursor?",
    registry=_registry,
)


def exposition() -> bytes:
    """Return all metrics of the processor in Prometheus's text format."""
    return generate_latest(_registry)


def samples() -> Samples:
    """Return all metrics of this process for the answer to `GET /status`."""
    return samples_of(_registry.collect())
