"""What the drill measures: memory of processes that are killed, times, p99 ratios."""

import math
from contextlib import closing

import pytest

from tests.drill.accounts import Findings
from tests.drill.faults import most_in_a_second
from tests.drill.rows import ROWS, Result, Row, broken
from tests.drill.stage import Plan, peak_growth, resident_bytes
from tests.support.processes import PushgateProcess


class Dying(PushgateProcess):
    """A process that ends between the question whether it runs and the look at its memory."""

    def __init__(self, error: Exception) -> None:
        super().__init__("dying", {}, operators_port=0)
        self.error = error

    @property
    def resident_bytes(self) -> int:
        raise self.error


@pytest.mark.parametrize("error", [FileNotFoundError(), ProcessLookupError(), IndexError()])
def test_a_process_that_has_just_ended_has_no_memory(error: Exception) -> None:
    with closing(Dying(error)) as process:
        assert resident_bytes(process) is None


def test_what_else_goes_wrong_is_raised() -> None:
    with closing(Dying(ValueError("no number"))) as process, pytest.raises(ValueError, match="no"):
        resident_bytes(process)


def test_growth_of_the_largest_is_that_of_whichever_process() -> None:
    begun = [(0.0, 82_000_000), (0.0, 80_000_000)]
    restarted = [(60.0, 70_000_000), (90.0, 85_000_000), (130.0, 81_000_000)]
    assert peak_growth([*begun, *restarted], 10.0) == pytest.approx(1.5)  # 3 MB in two minutes
    assert peak_growth(begun, 10.0) == 0.0


def test_reconnects_are_counted_in_the_fullest_second_whenever_that_begins() -> None:
    assert most_in_a_second([]) == 0
    assert most_in_a_second([9.0, 0.0, 0.9, 1.5, 1.6, 1.8, 3.0]) == 4


def test_a_client_is_owed_what_comes_while_its_node_counts() -> None:
    assert Plan(lost_node_seconds=30).back_seconds == 43.0  # the lease is 2 s old when it is cut


def result_of(*p99s: tuple[float, float]) -> Result:
    return Result(ROWS[0], Plan(), Findings(), 0.0, list(p99s), 0.0, 0.0, 0.0, 0.0, 0.0)


def test_one_bad_pair_is_no_ratio() -> None:
    pairs = [(0.1, 0.11), (0.1, 0.5), (0.1, 0.12)]
    assert result_of(*pairs).p99_ratio == pytest.approx(1.2)


def test_where_nothing_is_compared_there_is_no_ratio() -> None:
    assert math.isnan(result_of().p99_ratio)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_row_takes_a_gap_for_an_excuse(row: Row) -> None:
    findings = Findings(owed=1, gaps=1, behind_gaps=1)
    result = Result(row, Plan(), findings, 0.0, [], 0.0, 0.0, 0.0, 0.0, 0.0)
    told = [] if row.tells_gaps else ["1 gaps told"]
    assert list(broken(result)) == ["1 missing behind a gap", *told]
