"""How many lines of an event are written: of a storm a sample, and how many were left out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TextIO

#: The most events whose lines are counted apart. Texts of libraries may be made of data; beyond
#: this number, events of one logger and level share a budget.
MOST_EVENTS: Final = 500


@dataclass(frozen=True, slots=True)
class Budget:
    """The most lines of one event in a span of time."""

    lines: int
    seconds: float


class Event(NamedTuple):
    """Lines that share a budget: those of a logger and a level with the same text."""

    logger: str
    level: int
    text: str


@dataclass(slots=True)
class _Span:
    ends_at: float
    room: int
    left_out: int = 0


class Sample:
    """Counts lines by event, and says which are written. Times are in seconds, and passed in."""

    def __init__(self) -> None:
        self._spans: dict[Event, _Span] = {}

    def take(self, event: Event, budget: Budget, now: float) -> int | None:
        """Return None for a line that is left out; else how many lines were left out before it.

        A span begins with a line, and its first lines are written, as many as the budget has.
        """
        event = self._counted_as(event, now)
        span = self._spans.get(event)
        if span is None or now >= span.ends_at:
            self._spans[event] = _Span(now + budget.seconds, budget.lines - 1)
            return 0 if span is None else span.left_out
        if span.room:
            span.room -= 1
            return 0
        span.left_out += 1
        return None

    def left_out(self, now: float) -> dict[Event, int]:
        """Return the numbers of lines that were left out in spans that have ended, once."""
        ended = {event: span for event, span in self._spans.items() if now >= span.ends_at}
        for event in ended:
            del self._spans[event]
        return {event: span.left_out for event, span in ended.items() if span.left_out}

    def next_end(self) -> float | None:
        """Return when the next span with left-out lines ends; None where no line is left out."""
        return min((span.ends_at for span in self._spans.values() if span.left_out), default=None)

    def _counted_as(self, event: Event, now: float) -> Event:
        spans = self._spans
        if event in spans or len(spans) < MOST_EVENTS:
            return event
        for known in [known for known, span in spans.items() if now >= span.ends_at]:
            if not spans[known].left_out:
                del spans[known]
        return event if len(spans) < MOST_EVENTS else event._replace(text="")


def call_later(seconds: float, report: Callable[[], None]) -> bool:
    """Call `report` after some seconds where an event loop runs; return whether one runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    loop.call_later(seconds, report)
    return True


class SampledHandler(logging.StreamHandler[TextIO]):
    """Writes lines within the budgets of their events.

    Where lines were left out, the next line of the event has their number as `left_out`. Where no
    such line comes, a line of its own says so: `lines were left out`. In a thread without an event
    loop no report can be scheduled: the next line that is left out elsewhere schedules the report,
    or `close` reports.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        budget_of: Callable[[logging.LogRecord], Budget],
        report: Callable[[Event, int], None],
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], bool] = call_later,
    ) -> None:
        """`report` logs how many lines of an event were left out.

        `later` delays a call, and returns False where it can't.
        """
        super().__init__(stream)
        self._budget_of = budget_of
        self._report = report
        self._clock = clock
        self._later = later
        self._sample = Sample()
        self._is_due = False  # a report is scheduled

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as left out. The handler's lock is held."""
        now = self._clock()
        missing = self._sample.take(_event_of(record), self._budget_of(record), now)
        if missing is None:
            self._schedule(now)
            return
        if missing:
            _note(record, missing)
        super().emit(record)

    def close(self) -> None:
        """Report all lines that were left out, whether or not their spans have ended."""
        with self._locked():
            left_out = self._sample.left_out(float("inf"))
        self._report_all(left_out)
        super().close()

    def _schedule(self, now: float) -> None:
        """Schedule a report at the next end of a span. The handler's lock is held."""
        if self._is_due:
            return
        end = self._sample.next_end()
        if end is not None:
            self._is_due = self._later(max(0.0, end - now), self._report_ended)

    def _report_ended(self) -> None:
        with self._locked():
            now = self._clock()
            self._is_due = False
            left_out = self._sample.left_out(now)
            self._schedule(now)
        self._report_all(left_out)

    def _report_all(self, left_out: Mapping[Event, int]) -> None:
        """Report outside the lock: a report goes through other handlers, which have own locks."""
        for event, lines in left_out.items():
            self._report(event, lines)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _event_of(record: logging.LogRecord) -> Event:
    """Return a record's event. The text of a library's record is its template, without its data."""
    text = record.msg["event"] if isinstance(record.msg, dict) else record.msg
    return Event(record.name, record.levelno, str(text))


def _note(record: logging.LogRecord, left_out: int) -> None:
    if isinstance(record.msg, dict):  # structlog's
        record.msg = {**record.msg, "left_out": left_out}
    else:
        record.left_out = left_out
