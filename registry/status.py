"""The answer to `GET /status`: the state of a gateway or a processor, for tools."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import msgspec


class Sample(msgspec.Struct):
    """A value of a metric, with its labels."""

    labels: dict[str, str]
    value: float


#: The samples of metrics, by Prometheus's names.
Samples = dict[str, list[Sample]]


class Status(msgspec.Struct):
    """The state of a process. docs/protocol.md ("Status") has the fields."""

    kind: Literal["gateway", "processor"]
    name: str
    epoch: str | None  # None, as the address, where a processor registers no port
    address: str | None
    version: str
    status: str  # as `/readyz` says it
    warnings: list[str]
    started_ms: int  # epoch milliseconds
    now_ms: int
    drain_seconds: float | None  # until the drain's window ends; None without a drain
    metrics: Samples


class Family(Protocol):
    """A metric of prometheus_client, as collected from a registry."""

    samples: list[Any]


def samples_of(families: Iterable[Family]) -> Samples:
    """Return the samples of metrics by name.

    Left out are the times at which counters were made, and values without a number in JSON.
    """
    samples: Samples = {}
    for family in families:
        for name, labels, value, *_ in family.samples:
            if not name.endswith("_created") and math.isfinite(value):
                samples.setdefault(name, []).append(Sample(dict(labels), value))
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels; 0 where there are none."""
    return sum(sample.value for sample in samples.get(name, ()) if _has(sample.labels, labels))


def by_label(samples: Samples, name: str, label: str) -> dict[str, float]:
    """Return a metric's values by a label, summed over all other labels."""
    values: dict[str, float] = {}
    for sample in samples.get(name, ()):
        if label in sample.labels:
            key = sample.labels[label]
            values[key] = values.get(key, 0.0) + sample.value
    return values


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())
