"""Of a storm of lines a sample is written, and how many were left out."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest

from pushgate.sampling import MOST_EVENTS, Budget, Event, Sample, SampledHandler, call_later
from tests.support.clock import Clock

BUDGET = Budget(lines=2, seconds=10.0)
EVENT = Event("gateway", logging.ERROR, "it failed")


def test_a_span_writes_as_many_lines_as_its_budget_has() -> None:
    sample = Sample()
    assert [sample.take(EVENT, BUDGET, now) for now in (0.0, 1.0, 9.9, 9.99)] == [0, 0, None, None]


def test_the_first_line_of_the_next_span_says_how_many_were_left_out() -> None:
    sample = Sample()
    assert [sample.take(EVENT, BUDGET, 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert [sample.take(EVENT, BUDGET, 10.0) for _ in range(3)] == [3, 0, None]
    assert [sample.take(EVENT, BUDGET, 20.0) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "other",
    [EVENT._replace(text="another"), EVENT._replace(level=30), EVENT._replace(logger="aiokafka")],
)
def test_a_storm_of_one_event_leaves_out_no_line_of_another(other: Event) -> None:
    sample = Sample()
    assert [sample.take(EVENT, BUDGET, 0.0) for _ in range(3)] == [0, 0, None]
    assert sample.take(other, BUDGET, 0.0) == 0


def test_what_was_left_out_is_said_once_and_only_after_the_span() -> None:
    sample = Sample()
    for _ in range(5):
        sample.take(EVENT, BUDGET, 0.0)
    assert sample.left_out(9.9) == {}
    assert sample.left_out(10.0) == {EVENT: 3}
    assert sample.left_out(10.0) == {}
    assert sample.take(EVENT, BUDGET, 10.0) == 0


def test_beyond_the_most_events_the_texts_of_a_logger_share_a_budget() -> None:
    sample = Sample()
    texts = [EVENT._replace(text=f"text {number}") for number in range(MOST_EVENTS + 4)]
    assert [sample.take(text, BUDGET, 0.0) for text in texts] == [0] * (MOST_EVENTS + 2) + [
        None
    ] * 2
    assert len(sample._spans) == MOST_EVENTS + 1
    # Spans that have ended make room; the count that is still to be said is kept.
    assert sample.take(EVENT, BUDGET, 10.0) == 0
    assert set(sample._spans) == {EVENT, EVENT._replace(text="")}
    assert sample.left_out(10.0) == {EVENT._replace(text=""): 2}


class Log:
    """A logger of its own with a sampled handler; `later` has the calls that are due."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.has_loop = True
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.reports: list[tuple[str, int]] = []
        self.handler = SampledHandler(
            self.stream,
            budget_of=lambda _: BUDGET,
            report=lambda event, lines: self.reports.append((event.text, lines)),
            clock=self.clock,
            later=self.call_later,
        )
        self.handler.setFormatter(
            logging.Formatter("%(message)s left_out=%(left_out)s", defaults={"left_out": 0})
        )
        self.logger = logging.Logger("aiokafka")
        self.logger.addHandler(self.handler)

    def call_later(self, seconds: float, call: Callable[[], None]) -> bool:
        if self.has_loop:
            self.later.append((seconds, call))
        return self.has_loop

    def storm(self, text: str = "it failed", *, lines: int = 3) -> None:
        for _ in range(lines):
            self.logger.error(text)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_lines_of_a_library_are_told_apart_by_their_templates_and_not_by_their_data() -> None:
    log = Log()
    for node in range(4):
        log.logger.error("can't connect to %s", node)
    assert log.lines == ["can't connect to 0 left_out=0", "can't connect to 1 left_out=0"]
    log.clock.now += BUDGET.seconds
    log.logger.error("can't connect to %s", 9)
    assert log.lines[2:] == ["can't connect to 9 left_out=2"]


def test_what_no_later_line_says_is_reported_when_the_span_has_ended() -> None:
    log = Log()
    log.storm(lines=5)
    [(seconds, report)] = log.later
    assert seconds == BUDGET.seconds
    log.clock.now += seconds
    report()
    assert log.reports == [("it failed", 3)]
    log.storm()
    assert len(log.later) == 2  # each storm has a report


def test_the_end_of_the_process_reports_a_storm_that_goes_on() -> None:
    log = Log()
    log.storm()
    log.handler.close()
    assert log.reports == [("it failed", 1)]


def test_a_storm_in_a_thread_without_a_loop_keeps_no_later_report_back() -> None:
    log = Log()
    log.has_loop = False
    log.storm()
    log.has_loop = True
    log.storm("another failed")
    [(seconds, report)] = log.later
    log.clock.now += seconds
    report()
    assert log.reports == [("it failed", 1), ("another failed", 1)]


def test_a_span_that_goes_on_at_a_report_has_a_report_at_its_own_end() -> None:
    log = Log()
    log.storm()
    log.clock.now = 4.0
    log.storm("another failed")
    log.clock.now = 10.0
    log.later[0][1]()
    assert log.reports == [("it failed", 1)]
    assert [seconds for seconds, _ in log.later] == [10.0, 4.0]
    log.clock.now = 14.0
    log.later[1][1]()
    assert log.reports[1:] == [("another failed", 1)]
    assert len(log.later) == 2


def test_a_report_that_comes_too_early_is_made_up_for() -> None:
    log = Log()
    log.storm()
    log.clock.now = 9.75  # a loop's clock is behind by as long as a turn takes
    log.later[0][1]()
    assert (log.reports, log.later[1][0]) == ([], 0.25)


@pytest.mark.parametrize("ends", [True, False])
def test_spans_are_looked_through_under_the_lock_and_reported_outside(ends: bool) -> None:
    log, held = Log(), list[bool]()
    lock: Any = log.handler.lock

    class Watched(Sample):
        def left_out(self, now: float) -> dict[Event, int]:
            held.append(lock._is_owned())
            return super().left_out(now)

    log.handler._sample = Watched()
    log.handler._report = lambda *_: held.append(lock._is_owned())
    log.storm()
    log.clock.now = 10.0
    log.handler.close() if ends else log.later[0][1]()
    assert held == [True, False]


def test_a_delayed_call_needs_a_loop() -> None:
    assert not call_later(0.0, lambda: None)

    async def called() -> None:
        done = asyncio.Event()
        assert call_later(0.0, done.set)
        await asyncio.wait_for(done.wait(), 5)

    asyncio.run(called())
