"""Of a storm of lines a sample is written, and how many were left out."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from pushgate.sampling import MOST_EVENTS, Budget, Event, Sample, SampledHandler
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
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.reports: list[tuple[str, int]] = []
        self.handler = SampledHandler(
            self.stream,
            budget_of=lambda _: BUDGET,
            report=lambda event, lines: self.reports.append((event.text, lines)),
            clock=self.clock,
            later=lambda seconds, call: self.later.append((seconds, call)),
        )
        self.handler.setFormatter(
            logging.Formatter("%(message)s left_out=%(left_out)s", defaults={"left_out": 0})
        )
        self.logger = logging.Logger("aiokafka")
        self.logger.addHandler(self.handler)

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
    for _ in range(5):
        log.logger.error("it failed")
    [(seconds, report)] = log.later
    assert seconds == BUDGET.seconds
    log.clock.now += seconds
    report()
    assert log.reports == [("it failed", 3)]
    for _ in range(3):
        log.logger.error("it failed")
    assert len(log.later) == 2  # each storm has a report


def test_the_end_of_the_process_reports_a_storm_that_goes_on() -> None:
    log = Log()
    for _ in range(3):
        log.logger.error("it failed")
    log.handler.close()
    assert log.reports == [("it failed", 1)]
