"""docs/sizing.md: its tables are calculated, and planned figures leave room above measured ones."""

from __future__ import annotations

import pytest

from loadtest.sizing import FIGURES, PAGE, WAITING_BYTES, Figure, Load, page, sizes
from processor import metrics
from processor.outcomes import accessory
from processor.sending import gateways


def test_the_tables_are_as_they_are_calculated() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "run make sizing"
    assert text.count("<!-- end -->") == 2


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_what_is_planned_with_is_no_less_than_what_was_measured(figure: Figure) -> None:
    assert 0 < figure.measured <= figure.planned


def test_a_processor_has_memory_for_all_that_may_wait() -> None:
    assert gateways.MAX_WAITING_BYTES > 0  # which sets the gauge of all gateways' bound
    ((silent,),) = (family.samples for family in metrics.WAITING_LIMIT_BYTES.collect())
    assert silent.value + 2 * accessory._MOST_BYTES == WAITING_BYTES


def test_what_a_load_needs() -> None:
    needed = sizes(Load(1_000_000, 16_667))
    assert (needed.workers, needed.processors, needed.partitions) == (22, 2, 6)
    # 40,000 heartbeats of 30 µs, 585 connects of 300 µs, and messages of 20 µs, each second.
    assert needed.gateway_cores == pytest.approx(1.2 + 0.175 + 0.333, abs=0.002)
    assert needed.gateway_bytes == pytest.approx(5.524e9 + 22 * 110e6)
    assert needed.redis_bytes == pytest.approx(250e6)
    # 1,170 writes of users who reconnect and 1,667 of entries asserted, 15 µs each; look-ups of 2.
    assert needed.redis_cores == pytest.approx(0.0175 + 0.0250 + 0.0333, abs=0.0002)
    assert needed.kafka_bytes_a_second == pytest.approx(16_667 * 300)


@pytest.mark.parametrize(
    ("connections", "rate", "workers", "processors"),
    [(1, 0, 2, 2), (50_000, 25_000, 2, 2), (50_001, 25_001, 3, 3), (1_000_000, 500_000, 22, 22)],
)
def test_processes_are_to_spare(connections: int, rate: int, workers: int, processors: int) -> None:
    needed = sizes(Load(connections, rate))
    assert (needed.workers, needed.processors) == (workers, processors)
