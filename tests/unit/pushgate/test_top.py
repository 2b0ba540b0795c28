"""Figures and lines of `pushgate top`, from answers of processes that are not there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from pushgate.ports import NoAnswer
from pushgate.top.figures import figures, quantile
from pushgate.top.reading import Answers, Reading
from pushgate.top.screen import lines
from registry.directory import Node
from registry.status import Sample, Samples, Status

GATEWAY = Node("gw-1", "e1", "10.0.0.1:8081")
PROCESSOR = Node("p-1", "e1", "10.0.0.2:8082")


def status(
    node: Node,
    metrics: Samples,
    *,
    state: str = "ready",
    warnings: Sequence[str] = (),
    drain_seconds: float | None = None,
) -> Status:
    return Status(
        kind="gateway" if node == GATEWAY else "processor",
        name=node.name,
        epoch=node.epoch,
        address=node.address,
        version="0.2",
        status=state,
        warnings=list(warnings),
        started_ms=0,
        now_ms=3_725_000,
        drain_seconds=drain_seconds,
        metrics=metrics,
    )


def samples(name: str, value: float, **labels: str) -> Samples:
    return {name: [Sample(labels, value)]}


def reading(at: float, gateways: Answers, processors: Answers, *, without_port: int = 0) -> Reading:
    return Reading(at, gateways, processors, without_port)


def test_rates_are_those_between_two_readings_of_one_start() -> None:
    pushed = "pushgate_gateway_pushed_total"
    first = reading(10.0, {GATEWAY: status(GATEWAY, samples(pushed, 100, result="taken"))}, {})
    second = reading(12.0, {GATEWAY: status(GATEWAY, samples(pushed, 150, result="taken"))}, {})
    assert figures(first, None).gateways[0].pushed_rate is None
    assert figures(second, first).gateways[0].pushed_rate == 25
    again = Node(GATEWAY.name, "e2", GATEWAY.address)  # its counters begin anew
    restarted = reading(14.0, {again: status(GATEWAY, samples(pushed, 5, result="taken"))}, {})
    assert figures(restarted, second).gateways[0].pushed_rate is None


def test_a_counter_without_a_sample_has_not_grown_and_cpu_of_an_older_version_is_unknown() -> None:
    [gateway] = figures(
        reading(2.0, {GATEWAY: status(GATEWAY, {})}, {}),
        reading(0.0, {GATEWAY: status(GATEWAY, {})}, {}),
    ).gateways
    assert (gateway.refused_rate, gateway.closed_rate, gateway.cpu_share) == (0, 0, None)


def test_clients_that_are_refused_are_those_of_the_public_port() -> None:
    def answer(public: float, internal: float) -> Status:
        refused = [
            Sample({"port": port, "status": "401", "reason": "no token"}, number)
            for port, number in (("public", public), ("internal", internal))
        ]
        return status(GATEWAY, {"pushgate_gateway_refused_total": refused})

    first = reading(0.0, {GATEWAY: answer(0, 0)}, {})
    second = reading(2.0, {GATEWAY: answer(4, 100)}, {})
    assert figures(second, first).gateways[0].refused_rate == 2


def test_outcomes_and_lag_are_summed_over_processors() -> None:
    def answer(delivered: float, lag: float) -> Status:
        outcomes = samples("pushgate_processor_outcomes_total", delivered, outcome="delivered")
        return status(PROCESSOR, outcomes | samples("pushgate_processor_lag_messages", lag))

    other = Node("p-2", "e1", "10.0.0.3:8082")
    first = reading(0.0, {}, {PROCESSOR: answer(0, 7), other: answer(0, 0)})
    second = reading(2.0, {}, {PROCESSOR: answer(10, 4), other: answer(30, 1)})
    found = figures(second, first)
    assert (found.outcome_rates, found.lag_messages) == ({"delivered": 20}, 5)


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({}, None),
        ({"1.0": 0, "+Inf": 0}, None),
        ({"1.0": 100, "2.0": 100, "+Inf": 100}, 0.99),
        ({"1.0": 90, "2.0": 100, "+Inf": 100}, 1.9),
        ({"1.0": 0, "2.0": 0, "+Inf": 10}, 2.0),
        ({"10.0": 100, "+Inf": 100, "2.0": 0}, 9.92),  # bounds are numbers, and in any order
    ],
)
def test_a_quantile_is_prometheus_s(buckets: dict[str, float], expected: float | None) -> None:
    assert quantile(buckets, 0.99) == (expected if expected is None else pytest.approx(expected))


def test_processes_that_do_not_answer_are_told_with_the_reason() -> None:
    older = Node("p-2", "e1", "10.0.0.3:8082")
    silent = reading(
        2.0,
        {GATEWAY: NoAnswer(GATEWAY, "ConnectTimeout")},
        {older: NoAnswer(older, "answers 404, Not Found", status=404)},
        without_port=2,
    )
    told = lines(figures(silent, reading(0.0, {}, {})), title="top")
    assert told[5].split()[:4] == ["gw-1", "no", "answer", "-"]
    assert told[8].split()[:3] == ["p-2", "older", "version"]
    assert "gw-1: ConnectTimeout" in told
    assert "2 processors not shown: set PUSHGATE_PROCESSOR_ADVERTISE_ADDRESS there" in told
    assert (told[1].split()[-2:], told[2]) == (["lag", "-"], "outcomes unknown")


def test_no_outcome_of_a_later_version_takes_the_terminal_over() -> None:
    def answer(number: float) -> Status:
        name = "pushgate_processor_outcomes_total"
        return status(PROCESSOR, samples(name, number, outcome="held\x1b[2J"))

    first, second = (reading(at, {}, {PROCESSOR: answer(at)}) for at in (0.0, 2.0))
    assert lines(figures(second, first), title="top")[2] == "held\ufffd[2J 1.0/s"


def test_a_drain_and_an_age_are_told_and_who_is_not_ready_comes_first() -> None:
    last = Node("gw-2", "e1", "10.0.0.4:8081")
    draining = status(GATEWAY, {}, state="draining", drain_seconds=34.2)
    found = figures(reading(0.0, {last: status(last, {}), GATEWAY: draining}, {}), None)
    told = lines(found, title="top")
    assert [line.split()[0] for line in told[4:7]] == ["gateway", "gw-1", "gw-2"]
    assert "draining, 34s left" in told[5]
    assert "1h 2m" in told[5]
    assert "no processor is found" in told


@pytest.mark.parametrize(("cells", "height"), [(10, 4), (24, 8), (60, 20), (200, 50)])
def test_lines_fit_any_terminal(cells: int, height: int) -> None:
    nodes = [Node(f"gateway-number-{n}", "e1", "10.0.0.1:8081") for n in range(30)]
    warnings = ["the registry does not answer 漢字"]
    found = figures(
        reading(
            0.0,
            {node: status(node, {}, warnings=warnings) for node in nodes},
            {PROCESSOR: status(PROCESSOR, {})},
        ),
        None,
    )
    told = lines(found, title="pushgate top", cells=cells, height=height)
    assert len(told) <= height
    assert all(cell_len(line) <= cells for line in told)
    assert height < 20 or any(line.startswith("…") for line in told)
