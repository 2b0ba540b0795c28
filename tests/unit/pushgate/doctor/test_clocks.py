"""Clocks compared with this host's, within what a reading may be off."""

from __future__ import annotations

import pytest

from pushgate.doctor.clocks import Reading, judge
from pushgate.doctor.finding import Severity
from tests.support.findings import only


def test_clocks_that_agree_are_one_line() -> None:
    (finding,) = judge([Reading("Redis", 0.5, 0.0), Reading("node a", -2.0, 0.1)])
    assert finding.severity is Severity.OK
    assert finding.what == "Redis, node a: 2.000 s behind this host's clock at most"


@pytest.mark.parametrize(
    ("ahead", "severity", "words"),
    [
        (6.0, Severity.WARNING, "6.000 s ahead of"),
        (-6.0, Severity.WARNING, "6.000 s behind"),
        (30.0, Severity.WARNING, "30.000 s ahead of"),
        (40.0, Severity.FAULT, "40.000 s ahead of"),
    ],
)
def test_a_clock_that_differs_is_a_finding_with_its_side(
    ahead: float, severity: Severity, words: str
) -> None:
    finding = only(judge([Reading("node a", ahead, 0.1), Reading("Redis", 0.0, 0.1)]))
    assert finding.severity is severity
    assert f"the clock of node a is {words}" in finding.what


def test_a_reading_that_may_be_off_accuses_nobody() -> None:
    (finding,) = judge([Reading("node a", 6.0, 1.5)])
    assert finding.severity is Severity.OK


def test_where_no_clock_agrees_each_is_named() -> None:
    found = judge([Reading("node a", 6.0, 0.0), Reading("Redis", -7.0, 0.0)])
    assert [each.severity for each in found] == [Severity.WARNING] * 2
