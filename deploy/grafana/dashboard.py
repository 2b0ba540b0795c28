"""The Grafana dashboard of pushgate: rows of panels, each with its queries.

`python deploy/grafana/dashboard.py` writes pushgate.json beside this file. Every query is asked of
a Prometheus that scrapes a real system in tests/system/test_dashboard.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WRITTEN: Final = Path(__file__).with_name("pushgate.json")
#: The width of a row, and the height of a panel, in units of Grafana's grid.
_ROW_UNITS: Final = 24
_PANEL_UNITS: Final = 7
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """A query of PromQL, with the legend of its series."""

    text: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time, or a number; `unit` is one of Grafana's."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{_SELECTION}{labels}}}[$__rate_interval]))"


def _quantiles(metric: str, by: str = "", labels: str = "") -> tuple[Query, ...]:
    """Return the median and the 99th percentile of a histogram, by a label or over all."""
    legend = f" {{{{{by}}}}}" if by else ""
    buckets = _rate(f"{metric}_bucket", f"{by}, le" if by else "le", labels)
    return (
        Query(f"histogram_quantile(0.5, {buckets})", f"p50{legend}"),
        Query(f"histogram_quantile(0.99, {buckets})", f"p99{legend}"),
    )


#: Processes that are shown.
_SELECTION: Final = 'instance=~"$instance"'
_ON: Final = f"{{{_SELECTION}}}"
_G, _P = "pushgate_gateway", "pushgate_processor"

ROWS: Final = (
    Row(
        "At a glance",
        (
            Panel(
                "Connections",
                "Held by all gateways.",
                "short",
                (Query(f"sum({_G}_connections{_ON})", "connections"),),
                "stat",
                4,
            ),
            Panel(
                "Delivered",
                "Messages with the outcome delivered, a second.",
                "ops",
                (
                    Query(
                        _rate(f"{_P}_outcomes_total", "outcome", ', outcome="delivered"'),
                        "delivered",
                    ),
                ),
                "stat",
                4,
            ),
            Panel(
                "Failed",
                "Messages with the outcome failed, a second.",
                "ops",
                (
                    Query(
                        f'sum(rate({_P}_outcomes_total{{{_SELECTION}, outcome="failed"}}'
                        "[$__rate_interval])) or vector(0)",
                        "failed",
                    ),
                ),
                "stat",
                4,
            ),
            Panel(
                "Delivery, p99",
                "From the record's timestamp to the write.",
                "s",
                (_quantiles(f"{_G}_delivery_seconds")[1],),
                "stat",
                4,
            ),
            Panel(
                "Lag",
                "Messages in Kafka without an outcome.",
                "short",
                (Query(f"sum({_P}_lag_messages{_ON})", "lag"),),
                "stat",
                4,
            ),
            Panel(
                "Ready",
                "Gateways and processors that are ready.",
                "short",
                (
                    Query(f"sum({_G}_ready{_ON})", "gateways"),
                    Query(f"sum({_P}_ready{_ON})", "processors"),
                ),
                "stat",
                4,
            ),
        ),
    ),
    Row(
        "Clients",
        (
            Panel(
                "Connections by transport",
                "Long-poll: sessions.",
                "short",
                (Query(f"sum by (transport) ({_G}_connections{_ON})", "{{transport}}"),),
            ),
            Panel(
                "Connections by state",
                "opening: the registry is waited for; parting: told to reconnect.",
                "short",
                (Query(f"sum by (state) ({_G}_connections_by_state{_ON})", "{{state}}"),),
            ),
            Panel(
                "Connections by node",
                "",
                "short",
                (Query(f"sum by (instance) ({_G}_connections{_ON})", "{{instance}}"),),
            ),
            Panel(
                "Connects and closes",
                "A second; closes by reason.",
                "ops",
                (
                    Query(
                        _rate(f"{_G}_connections_opened_total", "transport"), "opened {{transport}}"
                    ),
                    Query(_rate(f"{_G}_connections_closed_total", "reason"), "closed: {{reason}}"),
                ),
            ),
            Panel(
                "Refused",
                "Requests refused a second, by status.",
                "ops",
                (Query(_rate(f"{_G}_refused_total", "status"), "{{status}}"),),
            ),
            Panel(
                "Handshakes",
                "From a request's head to its 101 or 200.",
                "s",
                _quantiles(f"{_G}_handshake_seconds", "transport"),
            ),
            Panel(
                "Clients that come back",
                "A second, by what became of them.",
                "ops",
                (Query(_rate(f"{_G}_resumes_total", "result"), "{{result}}"),),
            ),
            Panel(
                "Time to replay",
                "Until a client has what it missed.",
                "s",
                _quantiles(f"{_G}_resume_seconds"),
            ),
            Panel(
                "Gaps and unsent messages",
                "Gaps told, and messages unsent at closes.",
                "ops",
                (
                    Query(f"sum(rate({_G}_gaps_total{_ON}[$__rate_interval]))", "gaps"),
                    Query(
                        f"sum(rate({_G}_unsent_at_close_total{_ON}[$__rate_interval]))"
                        " or vector(0)",
                        "unsent",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Messages",
        (
            Panel(
                "Outcomes",
                "A second, by outcome and reason.",
                "ops",
                (
                    Query(
                        _rate(f"{_P}_outcomes_total", "outcome, reason") + " > 0",
                        "{{outcome}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Delivery",
                "From the record's timestamp to the write, by topic.",
                "s",
                _quantiles(f"{_G}_delivery_seconds", "topic"),
            ),
            Panel(
                "Not in these times",
                "Messages whose record is ahead of the node's clock, or has no known time.",
                "ops",
                (
                    Query(f"sum(rate({_G}_delivery_ahead_total{_ON}[$__rate_interval]))", "ahead"),
                    Query(
                        f"sum(rate({_G}_delivery_untimed_total{_ON}[$__rate_interval]))", "untimed"
                    ),
                ),
            ),
            Panel(
                "Pushed into gateways",
                "A second, by result.",
                "ops",
                (Query(_rate(f"{_G}_pushed_total", "result"), "{{result}}"),),
            ),
            Panel(
                "Forwards and look-ups",
                "Each of a whole batch.",
                "s",
                (
                    *_quantiles(f"{_P}_forward_seconds"),
                    *_quantiles(f"{_P}_lookup_seconds"),
                ),
            ),
            Panel(
                "Batch",
                "Messages in one push, on average.",
                "short",
                (
                    Query(
                        f"sum(rate({_G}_push_batch_messages_sum{_ON}[$__rate_interval]))"
                        f" / sum(rate({_G}_push_batch_messages_count{_ON}[$__rate_interval]))",
                        "messages",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Processors",
        (
            Panel(
                "Lag by topic",
                "Messages without an outcome.",
                "short",
                (Query(f"sum by (topic) ({_P}_lag_messages{_ON})", "{{topic}}"),),
            ),
            Panel(
                "Oldest message in hand",
                "",
                "s",
                (Query(f"max by (instance) ({_P}_oldest_seconds{_ON})", "{{instance}}"),),
            ),
            Panel(
                "In hand and waiting",
                "What waits: for silent gateways, or for room.",
                "short",
                (
                    Query(f"sum({_P}_in_hand_messages{_ON})", "in hand"),
                    Query(f"sum by (for) ({_P}_waiting_messages{_ON})", "waiting: {{for}}"),
                ),
            ),
            Panel(
                "Silent gateways",
                "As each processor sees them, by reason.",
                "short",
                (Query(f"sum by (reason) ({_P}_silent_gateways{_ON})", "{{reason}}"),),
            ),
            Panel(
                "Partitions",
                "Read by each processor.",
                "short",
                (Query(f"sum by (instance) ({_P}_partitions{_ON})", "{{instance}}"),),
            ),
            Panel(
                "Windows",
                "How far back messages are at hand for clients that come back.",
                "s",
                (Query(f"min by (instance) ({_P}_window_seconds{_ON})", "{{instance}}"),),
            ),
            Panel(
                "Window bytes",
                "Of PUSHGATE_RESUME_BYTES.",
                "percentunit",
                (Query(f"{_P}_window_bytes{_ON} / {_P}_window_limit_bytes", "{{instance}}"),),
            ),
            Panel(
                "Kafka's refusals",
                "Commits, dead letters and outcomes that failed, a second.",
                "ops",
                tuple(
                    Query(f"sum(rate({_P}_{name}_errors_total{_ON}[$__rate_interval]))", legend)
                    for name, legend in (
                        ("commit", "commits"),
                        ("dead_letter", "dead letters"),
                        ("outcome", "outcomes"),
                    )
                ),
            ),
            Panel(
                "Links",
                "Gateways' links for batches and for questions.",
                "short",
                (
                    Query(f"sum({_G}_links{_ON})", "batches"),
                    Query(f"sum({_G}_resume_links{_ON})", "questions"),
                ),
            ),
        ),
    ),
    Row(
        "Registry",
        (
            Panel(
                "Calls of gateways",
                "Heartbeats and writes of entries.",
                "s",
                _quantiles(f"{_G}_registry_seconds", "call"),
            ),
            Panel(
                "Trouble",
                "Gateways without a registry; processors in doubt who is offline.",
                "short",
                (
                    Query(f"sum({_G}_registry_out_of_order{_ON})", "out of order"),
                    Query(f"sum({_P}_registry_in_doubt{_ON})", "in doubt"),
                ),
            ),
            Panel(
                "Entries",
                "Still to be written; times that all were written again, an hour.",
                "short",
                (
                    Query(f"sum({_G}_registry_pending_users{_ON})", "pending"),
                    Query(f"sum(increase({_G}_registry_reasserted_total{_ON}[1h]))", "all again"),
                ),
            ),
        ),
    ),
    Row(
        "Limits and processes",
        (
            Panel(
                "Connections of the limit",
                "",
                "percentunit",
                (
                    Query(
                        f"sum without (transport) ({_G}_connections{_ON}) / {_G}_connections_limit",
                        "{{instance}}",
                    ),
                ),
            ),
            Panel(
                "Sockets of the limit",
                "",
                "percentunit",
                (Query(f"{_G}_sockets{_ON} / {_G}_sockets_limit", "{{instance}}"),),
            ),
            Panel(
                "File descriptors of the limit",
                "",
                "percentunit",
                (Query(f"process_open_fds{_ON} / (process_max_fds > 0)", "{{instance}}"),),
            ),
            Panel(
                "Resident memory",
                "And the gateways' memory marks, where there are any.",
                "bytes",
                (
                    Query(f"process_resident_memory_bytes{_ON}", "{{instance}}"),
                    Query(f"{_G}_memory_limit_bytes{_ON} > 0", "mark {{instance}}"),
                ),
            ),
            Panel(
                "CPU",
                "Cores; a process uses one at most.",
                "short",
                (Query(f"rate(process_cpu_seconds_total{_ON}[$__rate_interval])", "{{instance}}"),),
            ),
            Panel(
                "Versions",
                "Processes of each version.",
                "short",
                (Query(f"count by (version) (pushgate_build_info{_ON})", "{{version}}"),),
            ),
        ),
    ),
    Row(
        "Drains",
        (
            Panel(
                "Nodes that drain",
                "",
                "short",
                (Query(f"sum({_G}_draining{_ON})", "draining"),),
            ),
            Panel(
                "Clients told to reconnect",
                "",
                "short",
                (Query(f"sum by (instance) ({_G}_drain_told_clients{_ON})", "{{instance}}"),),
            ),
            Panel(
                "Time left",
                "Until the window ends.",
                "s",
                (Query(f"max by (instance) ({_G}_drain_left_seconds{_ON})", "{{instance}}"),),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "pushgate",
        "title": "pushgate",
        "tags": ["pushgate"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _instances()]},
        "panels": list(_laid_out()),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Prometheus",
    }


def _instances() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Processes",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": "label_values(pushgate_build_info, instance)",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out() -> Iterator[dict[str, Any]]:
    """Yield rows and panels, from left to right and down, each with its place in the grid."""
    number, x, y = 0, 0, 0
    for row in ROWS:
        number += 1
        place = {"x": 0, "y": y, "w": _ROW_UNITS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "gridPos": place, "panels": []}
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _ROW_UNITS:
                x, y = 0, y + _PANEL_UNITS
            number += 1
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": _PANEL_UNITS})
            x += panel.width
        y += _PANEL_UNITS


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _DATASOURCE,
                "expr": query.text,
                "legendFormat": query.legend,
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """Return the dashboard as JSON, as it stands in pushgate.json."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(text())
