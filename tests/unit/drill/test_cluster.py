"""The drill's processes: which are up is by steps alone, and a process that stays is a fault."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from tests.drill.cluster import Cluster
from tests.support.kafka import KafkaServer
from tests.support.processes import ProcessFailed


class FakeProcess:
    """A process that ends when told to; `stays` after SIGTERM where it is to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = "its log"
        self.returncode: int | None = 0
        self.stays = False
        self.status = 0

    def start(self, *, until_ready: bool = True) -> None:
        self.returncode = None

    def signal(self, number: signal.Signals) -> None:
        if not self.stays:
            self.returncode = self.status

    def kill(self) -> None:
        self.returncode = -9

    def wait(self, seconds: float) -> int:
        if self.returncode is None:
            raise ProcessFailed(f"{self.name} has not ended in {seconds:g} s")
        return self.returncode

    def close(self) -> None:
        self.kill()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Give a cluster of four fake processes at work."""
    made: Any = Cluster(Mock(), KafkaServer("nowhere", "external"), Mock(url="redis://nowhere"))
    for process in made.processes:  # none of the real ones has started
        process.close()
    made.gateways = [FakeProcess("gateway-0"), FakeProcess("gateway-1")]
    made.processors = [FakeProcess("processor-0"), FakeProcess("processor-1")]
    for process in made.processes:
        process.start()
    yield made
    made.end()


def test_a_process_that_does_not_leave_is_a_fault_once_and_starts_again(cluster: Cluster) -> None:
    process: Any = cluster.processors[1]
    process.stays = True
    cluster.stop(process)
    cluster.repair()
    assert process.returncode is None, "it was killed, and has started again"
    assert cluster.is_up(process)
    assert "processor-1 has not ended" in "\n".join(cluster.take_faults())
    cluster.repair()
    assert cluster.take_faults() == []


def test_a_process_that_ends_by_itself_counts_as_up_until_the_repair(cluster: Cluster) -> None:
    process: Any = cluster.gateways[0]
    process.kill()
    assert cluster.is_up(process), "what may be drawn is by what was drawn"
    cluster.repair()
    assert process.returncode is None
    assert "gateway-0 ended by itself" in "\n".join(cluster.take_faults())


def test_a_process_that_leaves_with_an_error_is_a_fault(cluster: Cluster) -> None:
    process: Any = cluster.processors[0]
    process.status = 1
    cluster.stop(process)
    cluster.start(process)
    assert "processor-0 left with 1" in "\n".join(cluster.take_faults())


def test_processes_that_were_killed_or_have_left_are_no_faults(cluster: Cluster) -> None:
    killed, stopped = cluster.processors
    cluster.kill(killed)
    cluster.stop(stopped)
    assert not cluster.is_up(killed)
    assert not cluster.is_up(stopped)
    cluster.repair()
    assert all(map(cluster.is_up, cluster.processes))
    assert cluster.take_faults() == []
