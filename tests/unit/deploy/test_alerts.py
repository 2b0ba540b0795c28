"""Metrics, alerts and the dashboard go together: names, documentation, Prometheus's own checks."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest
import yaml
from prometheus_client import CollectorRegistry

import gateway.metrics
import processor.metrics
from tests.support.markdown import ROOT, Page, codes
from tests.support.prometheus import SHIPPED, binary

ALERTS: Final = (SHIPPED / "alerts.yml").read_text()
TESTS: Final = (SHIPPED / "alerts_test.yml").read_text()
DASHBOARD: Final = runpy.run_path(str(ROOT / "deploy" / "grafana" / "dashboard.py"))
RUNBOOK: Final = Page(ROOT / "docs" / "alerts.md")
OPERATIONS: Final = Page(ROOT / "docs" / "operations.md")
NAMES: Final = re.findall(r"- alert: (\w+)", ALERTS)
REGISTRIES: Final = {"gateway": gateway.metrics._registry, "processor": processor.metrics._registry}
METRIC: Final = re.compile(r"\b(?:pushgate|process)_[a-z_]+[a-z]")
#: Labels that a metric may have: none is a user, an id or an address.
LABELS: Final = {
    "call", "for", "le", "outcome", "partition", "port", "python", "reason", "result", "state",
    "status", "topic", "transport", "version",
}  # fmt: skip


def names_of(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        yield f"{family.name}_total" if family.type == "counter" else family.name


ALL: Final = {name for registry in REGISTRIES.values() for name in names_of(registry)}


def documented() -> set[str]:
    """Give the names of the table; `…_x` continues the name before."""
    names: set[str] = set()
    for first, *_ in OPERATIONS.rows("Metrics to watch"):
        part = ""
        for code in codes(first):
            name = code.partition("{")[0]
            part = part if name.startswith("…") else "_".join(name.split("_")[:2])
            names.add(name.replace("…", part))
    return names


def used(text: str) -> set[str]:
    """Give the metrics that an expression asks for, without a histogram's endings."""
    found = set(METRIC.findall(text))
    return {
        re.sub(r"_(bucket|sum|count)$", "", name) if name not in ALL else name for name in found
    }


def test_every_metric_is_documented_and_no_other() -> None:
    assert documented() == ALL


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    expressions = re.sub(r"runbook: .*|summary: .*|#.*|- name: .*", "", ALERTS)
    queries = " ".join(q.text for row in DASHBOARD["ROWS"] for p in row.panels for q in p.queries)
    assert used(expressions) - ALL == set()
    assert used(queries) - ALL == set()
    assert len(used(expressions)) > 20
    assert len(used(queries)) > 30


def test_every_alert_has_a_scenario_and_a_section_and_no_other_has() -> None:
    assert len(NAMES) == len(set(NAMES)) > 20
    assert set(re.findall(r'alertname="(\w+)"', TESTS)) == set(NAMES)
    headings = {
        heading[1] for heading in re.finditer(r"^## (\w+)$", RUNBOOK.path.read_text(), re.M)
    }
    assert headings == set(NAMES)
    runbooks = re.findall(r"runbook: docs/alerts.md#(\w+)", ALERTS)
    assert runbooks == [name.lower() for name in NAMES]


def test_alerts_ask_for_jobs_that_every_shipped_way_of_scraping_names() -> None:
    configuration = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    jobs = {each["job_name"] for each in configuration["scrape_configs"]}
    manifests = ROOT / "deploy" / "kubernetes" / "monitoring" / "monitoring.yaml"
    replaced = {
        rule["replacement"]
        for monitor in yaml.safe_load_all(manifests.read_text())
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for rule in endpoint["relabelings"]
        if rule["targetLabel"] == "job"
    }
    asked = set(re.findall(r'job=~?"([^"]+)"', ALERTS))
    assert jobs == replaced == asked - {"pushgate-.*"}


def test_the_written_dashboard_is_that_of_the_program() -> None:
    assert DASHBOARD["WRITTEN"].read_text() == DASHBOARD["text"]()


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"],
     ["test", "rules", "alerts_test.yml"]],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_promtool_accepts_the_shipped_files(command: list[str]) -> None:
    ended = subprocess.run(
        [binary("promtool"), *command],
        check=False,
        cwd=SHIPPED,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("package", [gateway.metrics, processor.metrics])
def test_promtool_finds_nothing_wrong_with_the_metrics(package: object) -> None:
    text = package.exposition()  # type: ignore[attr-defined]
    ended = subprocess.run(
        [binary("promtool"), "check", "metrics"],
        check=False,
        input=text,
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, b"")


def test_what_an_alert_watches_is_there_before_its_first_event() -> None:
    """A new counter shows no increase for its first event; what is missing is never too little."""
    told = {
        (s.labels["outcome"], s.labels["reason"])
        for family in processor.metrics.OUTCOMES.collect()
        for s in family.samples
    }
    page = Page(ROOT / "docs" / "troubleshooting.md")
    reasons = {
        (kind.lower(), reason)
        for kind in ("Rejected", "Failed")
        for first, *_ in page.rows(kind)
        for reason in codes(first)
        if "NNN" not in reason
    }
    assert reasons - told == set()
    lost = {
        s.labels["topic"] for f in processor.metrics.ACCESSORY_LOST.collect() for s in f.samples
    }
    assert lost == {"outcomes", "dead-letter"}
    watched = (gateway.metrics.CONNECTIONS, gateway.metrics.OPENED, gateway.metrics.CLOSED)
    for metric in watched:
        transports = {
            s.labels["transport"]
            for family in metric.collect()
            for s in family.samples
            if s.labels.get("reason", "failed") == "failed"
        }
        assert transports == {"websocket", "sse", "poll"}, metric


def test_no_label_has_a_user() -> None:
    labels = {
        label
        for registry in REGISTRIES.values()
        for family in registry.collect()
        for sample in family.samples
        for label in sample.labels
    }
    declared = {
        label
        for package in (gateway.metrics, processor.metrics)
        for metric in vars(package).values()
        for label in getattr(metric, "_labelnames", ())
    }
    assert (labels | declared) - LABELS == set()
