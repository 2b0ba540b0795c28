"""An outage is logged when it begins and once a minute, by what is wrong, and when it ends."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gateway import metrics
from gateway.connections.outage import Outage
from registry.directory import RegistryRefuses, RegistryUnavailable
from registry.refusals import CURES
from tests.support.clock import Clock

SILENT = RegistryUnavailable("no answer", where="redis.internal:6379")
FULL = RegistryRefuses("OOM", "command not allowed", where="redis.internal:6379")
UNREACHABLE = "can't reach the registry; clients stay, trying on"
REFUSED = "the registry refuses writes; clients stay, trying on"
BACK = "registry is back; every entry is asserted again"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock) -> Outage:
    return Outage(clock=clock)


def test_each_trouble_is_logged_at_once_and_then_once_a_minute(
    outage: Outage, clock: Clock
) -> None:
    with capture_logs() as logs:
        for _ in range(130):  # seconds
            outage.failed(FULL)
            outage.failed(SILENT)
            clock.now += 1.0
    assert [entry["event"] for entry in logs] == [REFUSED, UNREACHABLE] * 3
    assert CURES["OOM"] in logs[0]["error"]


def test_a_metric_tells_of_the_outage_while_it_lasts(outage: Outage) -> None:
    def told() -> float:
        return next(iter(metrics.REGISTRY_OUT_OF_ORDER.collect())).samples[0].value

    outage.failed(SILENT)
    assert told() == 1
    outage.ended()
    assert told() == 0


def test_the_next_outage_is_logged_at_once_again(outage: Outage) -> None:
    with capture_logs() as logs:
        for _ in range(2):
            outage.failed(FULL)
            assert outage.lasts
            outage.ended()
            assert not outage.lasts
    assert [entry["event"] for entry in logs] == [REFUSED, BACK] * 2


def test_the_warning_has_the_cure_and_no_address(outage: Outage) -> None:
    assert outage.warning == ""
    outage.failed(FULL)
    assert outage.warning == f"the registry refuses writes (OOM): {CURES['OOM']}"
    outage.failed(SILENT)
    assert outage.warning == "the registry does not answer"
    outage.ended()
    assert outage.warning == ""
