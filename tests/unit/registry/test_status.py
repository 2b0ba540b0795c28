"""What a process says of its metrics to tools."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from registry.status import Sample, Samples, by_label, samples_of, total


def collected() -> Samples:
    registry = CollectorRegistry()
    requests = Counter("requests_total", "Requests.", ["kind", "code"], registry=registry)
    requests.labels("a", "1").inc(2)
    requests.labels("a", "2").inc(3)
    requests.labels("b", "1").inc(4)
    Gauge("unknown", "No number yet.", registry=registry).set(float("nan"))
    Histogram("seconds", "Times.", buckets=(1, 2), registry=registry).observe(1.5)
    return samples_of(registry.collect())


def test_samples_have_prometheus_names_and_only_numbers_that_json_has() -> None:
    samples = collected()
    assert set(samples) == {"requests_total", "seconds_bucket", "seconds_count", "seconds_sum"}
    assert Sample({"le": "+Inf"}, 1.0) in samples["seconds_bucket"]
    assert msgspec.json.decode(msgspec.json.encode(samples), type=Samples) == samples


def test_samples_are_summed_by_labels() -> None:
    samples = collected()
    assert total(samples, "requests_total") == 9
    assert total(samples, "requests_total", kind="a") == 5
    assert total(samples, "nothing") == 0
    assert by_label(samples, "requests_total", "kind") == {"a": 5, "b": 4}
