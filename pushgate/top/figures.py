"""What an operator reads: rates and latencies between two readings, and what is so now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from pushgate.ports import NoAnswer
from pushgate.top.reading import Reading
from registry.directory import Node
from registry.status import Samples, Status, by_label, total

#: The status of a process that does not say one.
NO_ANSWER: Final = "no answer"
_OLDER: Final = "older version"
#: The answer of a process that has no `GET /status` yet.
_NOT_FOUND: Final = 404

_QUANTILE: Final = 0.99
_CPU: Final = "process_cpu_seconds_total"


class Gateway(msgspec.Struct):
    """Figures of a gateway. Rates are a second's; None where two readings don't tell."""

    name: str
    epoch: str
    address: str
    status: str
    remarks: list[str]  # warnings, or why there is no answer
    version: str | None = None
    up_seconds: float | None = None
    drain_seconds: float | None = None
    connections: dict[str, float] = {}  # by transport
    opened_rate: float | None = None
    closed_rate: float | None = None
    refused_rate: float | None = None
    pushed_rate: float | None = None
    delivery_p99_seconds: float | None = None
    resident_bytes: float | None = None
    cpu_share: float | None = None  # of one core


class Processor(msgspec.Struct):
    """Figures of a processor. Rates are a second's; None where two readings don't tell."""

    name: str
    epoch: str
    address: str
    status: str
    remarks: list[str]  # warnings, or why there is no answer
    version: str | None = None
    up_seconds: float | None = None
    outcome_rates: dict[str, float] | None = None  # by outcome
    lag_messages: float | None = None
    in_hand_messages: float | None = None
    oldest_seconds: float | None = None
    waiting_messages: float | None = None
    lookup_p99_seconds: float | None = None
    forward_p99_seconds: float | None = None
    resident_bytes: float | None = None
    cpu_share: float | None = None  # of one core


class Figures(msgspec.Struct):
    """The figures of all processes."""

    gateways: list[Gateway]
    processors: list[Processor]
    processors_without_port: int
    seconds: float | None  # between the two readings; None after the first

    @property
    def connections(self) -> float:
        """All connections."""
        return sum(sum(gateway.connections.values()) for gateway in self.gateways)

    @property
    def lag_messages(self) -> float | None:
        """The lag of all partitions whose processors answer; None if none does."""
        lags = [p.lag_messages for p in self.processors if p.lag_messages is not None]
        return sum(lags) if lags else None

    @property
    def outcome_rates(self) -> dict[str, float] | None:
        """The rates of outcomes over all processors, the highest first; None if none tells."""
        tellers = [p.outcome_rates for p in self.processors if p.outcome_rates is not None]
        if not tellers:
            return None
        rates: dict[str, float] = {}
        for by_outcome in tellers:
            for outcome, rate in by_outcome.items():
                rates[outcome] = rates.get(outcome, 0.0) + rate
        return dict(sorted(rates.items(), key=lambda item: -item[1]))


def figures(now: Reading, before: Reading | None) -> Figures:
    """Return the figures of a reading, with rates since the reading `before`."""
    seconds = None if before is None else now.at - before.at
    earlier = {} if before is None else {**before.gateways, **before.processors}
    return Figures(
        [
            _gateway(node, answer, _Since(answer, earlier.get(node), seconds))
            for node, answer in now.gateways.items()
        ],
        [
            _processor(node, answer, _Since(answer, earlier.get(node), seconds))
            for node, answer in now.processors.items()
        ],
        now.without_port,
        seconds,
    )


class _Since:
    """What has changed in a process's metrics since an earlier answer of the same start."""

    def __init__(
        self,
        now: Status | NoAnswer,
        before: Status | NoAnswer | None,
        seconds: float | None,
    ) -> None:
        self._now = now.metrics if isinstance(now, Status) else {}
        self._before = before.metrics if isinstance(before, Status) else None
        self._seconds = seconds or 0.0

    def rate(self, name: str, **labels: str) -> float | None:
        """Return by how much a counter grows a second; an unused label of it has no sample yet."""
        if self._before is None or not self._seconds:
            return None
        grown = total(self._now, name, **labels) - total(self._before, name, **labels)
        return max(0.0, grown) / self._seconds

    def rates(self, name: str, label: str) -> dict[str, float] | None:
        """Return by how much a counter grows a second, by label."""
        if self._before is None or not self._seconds:
            return None
        before = by_label(self._before, name, label)
        return {
            key: max(0.0, value - before.get(key, 0.0)) / self._seconds
            for key, value in by_label(self._now, name, label).items()
        }

    def quantile(self, name: str) -> float | None:
        """Return the 99th percentile of a histogram's new observations; None if there are none."""
        if self._before is None:
            return None
        before = by_label(self._before, f"{name}_bucket", "le")
        buckets = {
            bound: count - before.get(bound, 0.0)
            for bound, count in by_label(self._now, f"{name}_bucket", "le").items()
        }
        return quantile(buckets, _QUANTILE)


def quantile(buckets: Mapping[str, float], share: float) -> float | None:
    """Return a quantile of a histogram's cumulative buckets, by their upper bounds as text.

    Within a bucket observations count as evenly spread, as in Prometheus's histogram_quantile; in
    the last, which has no upper bound, the answer is its lower bound. None without observations.
    """
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    rank = share * bounds[-1][1]
    lower = below = 0.0
    for bound, count in bounds:
        if count >= rank:
            if math.isinf(bound) or count == below:
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def _gateway(node: Node, answer: Status | NoAnswer, since: _Since) -> Gateway:
    if isinstance(answer, NoAnswer):
        return Gateway(node.name, node.epoch, node.address, _silence(answer), [answer.reason])
    samples = answer.metrics
    return Gateway(
        node.name,
        node.epoch,
        node.address,
        answer.status,
        answer.warnings,
        version=answer.version,
        up_seconds=_up_seconds(answer),
        drain_seconds=answer.drain_seconds,
        connections=by_label(samples, "pushgate_gateway_connections", "transport"),
        opened_rate=since.rate("pushgate_gateway_connections_opened_total"),
        closed_rate=since.rate("pushgate_gateway_connections_closed_total"),
        refused_rate=since.rate("pushgate_gateway_refused_total", port="public"),
        pushed_rate=since.rate("pushgate_gateway_pushed_total"),
        delivery_p99_seconds=since.quantile("pushgate_gateway_delivery_seconds"),
        resident_bytes=_value(samples, "process_resident_memory_bytes"),
        cpu_share=since.rate(_CPU) if _CPU in samples else None,
    )


def _processor(node: Node, answer: Status | NoAnswer, since: _Since) -> Processor:
    if isinstance(answer, NoAnswer):
        return Processor(node.name, node.epoch, node.address, _silence(answer), [answer.reason])
    samples = answer.metrics
    return Processor(
        node.name,
        node.epoch,
        node.address,
        answer.status,
        answer.warnings,
        version=answer.version,
        up_seconds=_up_seconds(answer),
        outcome_rates=since.rates("pushgate_processor_outcomes_total", "outcome"),
        lag_messages=total(samples, "pushgate_processor_lag_messages"),
        in_hand_messages=total(samples, "pushgate_processor_in_hand_messages"),
        oldest_seconds=total(samples, "pushgate_processor_oldest_seconds"),
        waiting_messages=total(samples, "pushgate_processor_waiting_messages"),
        lookup_p99_seconds=since.quantile("pushgate_processor_lookup_seconds"),
        forward_p99_seconds=since.quantile("pushgate_processor_forward_seconds"),
        resident_bytes=_value(samples, "process_resident_memory_bytes"),
        cpu_share=since.rate(_CPU) if _CPU in samples else None,
    )


def _silence(answer: NoAnswer) -> str:
    return _OLDER if answer.status == _NOT_FOUND else NO_ANSWER


def _up_seconds(answer: Status) -> float:
    return max(0.0, (answer.now_ms - answer.started_ms) / 1_000)


def _value(samples: Samples, name: str) -> float | None:
    return total(samples, name) if name in samples else None


def remarks(processes: Iterable[Gateway | Processor]) -> list[str]:
    """Return what processes warn of, or why they do not answer, with their names."""
    return [f"{process.name}: {remark}" for process in processes for remark in process.remarks]
