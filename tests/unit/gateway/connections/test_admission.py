"""How much a node takes: limits, handshakes a second, addresses, memory, and one log line."""

import resource

import pytest
import structlog
from structlog.typing import EventDict

from gateway.connections.admission import (
    Admission,
    Limits,
    most_connections,
)
from gateway.connections.memory import MemoryMark
from tests.unit.gateway.fakes import FakeMemory

NOW = 70_000.0
MARK = 1_000_000


def made(
    *,
    connections: int = 1_000_000,
    per_address: int = 0,
    per_user: int = 0,
    handshakes: int = 0,
    memory: FakeMemory | None = None,
) -> Admission:
    limits = Limits(
        connections=connections,
        per_address=per_address,
        per_user=per_user,
        handshakes_per_second=handshakes,
    )
    return Admission(limits, MemoryMark(MARK, memory or FakeMemory()))


def admitted(admission: Admission, now: float, tries: int, address: str = "a") -> int:
    return sum(admission.refusal(address, now) is None for _ in range(tries))


def test_without_limits_nobody_is_refused() -> None:
    admission = made()
    for _ in range(10_000):
        assert admission.refusal("a", NOW) is None
        assert admission.user_refusal(admission.held) is None
        admission.count_in("a")
    assert not admission.overloaded


def test_a_full_node_takes_one_more_when_one_has_left() -> None:
    admission = made(connections=2)
    first = admission.count_in("a")
    assert admission.refusal("b", NOW) is None
    assert not admission.overloaded
    admission.count_in("b")
    assert admission.refusal("c", NOW) == "full"
    assert admission.overloaded
    admission.count_out(first)
    assert admission.refusal("c", NOW) is None
    assert not admission.overloaded


def test_each_address_has_a_share_of_its_own() -> None:
    admission = made(per_address=2)
    entered = [admission.count_in("a"), admission.count_in("a")]
    assert admission.refusal("a", NOW) == "too many connections from this address"
    assert admission.refusal("b", NOW) is None
    assert not admission.overloaded
    admission.count_out(entered[0])
    assert admission.refusal("a", NOW) is None


def test_the_counts_of_addresses_return_to_zero_and_are_forgotten() -> None:
    admission = made(per_address=3)
    for _ in range(50):
        entered = [admission.count_in(f"10.0.0.{number % 7}") for number in range(21)]
        assert admission.held == 21
        assert admission.refusal("10.0.0.0", NOW) is not None
        for address in reversed(entered):
            admission.count_out(address)
        assert admission.held == 0
        assert admission.refusal("10.0.0.0", NOW) is None
    assert admission._addresses == {}  # an address that is gone costs nothing


def test_a_connection_that_replaces_another_is_not_refused_for_a_number() -> None:
    admission = made(connections=1, per_address=1, handshakes=1)
    admission.count_in("a")
    assert admission.refusal("a", NOW) == "full"
    assert admission.refusal("a", NOW, replaces=True) is None
    assert admission.refusal("a", NOW, replaces=True) == "too many new connections"
    assert (admission.full, admission.exhausted, admission.overloaded) == (True, False, True)


def test_a_connection_that_replaces_another_needs_descriptors_and_memory() -> None:
    memory = FakeMemory()
    admission = made(memory=memory)
    admission.out_of_sockets = True
    assert admission.refusal("a", NOW, replaces=True) == "full"
    assert admission.exhausted
    admission.out_of_sockets, memory.held = False, MARK + 1
    admission.advance(NOW)
    assert admission.refusal("a", NOW, replaces=True) == "short of memory"
    assert admission.exhausted


def test_without_a_limit_no_address_is_kept() -> None:
    admission = made()
    assert admission.count_in("a") is None
    admission.count_out(None)
    assert admission.held == 0


def test_a_user_has_a_share() -> None:
    admission = made(per_user=2)
    assert [admission.user_refusal(count) for count in range(4)] == [
        None,
        None,
        "too many connections of this user",
        "too many connections of this user",
    ]


def test_a_second_has_so_many_handshakes_at_once_and_no_more() -> None:
    admission = made(handshakes=10)
    assert admitted(admission, NOW, 100) == 10
    assert admission.refusal("a", NOW) == "too many new connections"
    assert not admission.overloaded


def test_handshakes_come_back_at_their_rate() -> None:
    admission = made(handshakes=10)
    admitted(admission, NOW, 100)
    assert admitted(admission, NOW + 0.05, 100) == 0
    assert admitted(admission, NOW + 0.11, 100) == 1
    assert admitted(admission, NOW + 0.61, 100) == 5


def test_over_a_long_time_the_rate_holds() -> None:
    admission = made(handshakes=50)
    taken = sum(admitted(admission, NOW + tick / 100, 3) for tick in range(1_000))
    assert 500 <= taken <= 550


def test_what_was_not_used_is_no_credit_beyond_a_second() -> None:
    admission = made(handshakes=10)
    admitted(admission, NOW, 100)
    assert admitted(admission, NOW + 3_600, 100) == 10


def test_who_is_refused_for_another_reason_uses_up_no_handshake() -> None:
    admission = made(handshakes=5, per_address=1)
    admission.count_in("greedy")
    assert admitted(admission, NOW, 100, "greedy") == 0
    assert admitted(admission, NOW, 100, "other") == 5


def test_above_the_memory_mark_nothing_new_is_taken() -> None:
    memory = FakeMemory()
    admission = made(memory=memory)
    admission.advance(NOW)
    assert not admission.overloaded
    memory.held = MARK + 1
    admission.advance(NOW + 1)
    assert admission.overloaded
    assert admission.refusal("a", NOW + 1) == "short of memory"
    memory.held = 0
    admission.advance(NOW + 2)
    assert admission.refusal("a", NOW + 2) is None


def refused_lines(logged: list[EventDict]) -> list[int]:
    return [line["refused"] for line in logged if line["event"] == "refused for load"]


def test_a_storm_is_one_line_a_second_with_its_count() -> None:
    admission = made(connections=0, per_user=1)
    with structlog.testing.capture_logs() as logged:
        for tick in range(40):  # ten seconds
            for _ in range(100):
                admission.refusal("a", NOW + tick / 4)
            admission.user_refusal(1)
            admission.advance(NOW + tick / 4)
    lines = refused_lines(logged)
    assert len(lines) == 10
    assert sum(lines) == 37 * 101  # what came since the last line is in the next
    assert lines[1:] == [404] * 9


def test_when_nobody_is_refused_nothing_is_logged() -> None:
    admission = made()
    with structlog.testing.capture_logs() as logged:
        for tick in range(40):
            admission.refusal("a", NOW + tick)
            admission.advance(NOW + tick)
    assert logged == []


def test_a_log_line_names_no_address() -> None:
    admission = made(connections=0)
    admission.refusal("192.0.2.7", NOW)
    with structlog.testing.capture_logs() as logged:
        admission.advance(NOW)
    assert len(logged) == 1
    assert "192.0.2.7" not in repr(logged)


@pytest.mark.parametrize("descriptors", [0, 64, 1_024, 20_000, 1_048_576])
def test_descriptors_are_left_for_the_rest_of_the_process(
    monkeypatch: pytest.MonkeyPatch, descriptors: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    most = most_connections()
    assert most == 1 or most <= descriptors - 64
    assert most >= max(1, descriptors * 0.9 - 64)


def test_without_a_limit_of_descriptors_there_is_none_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert most_connections() > 1_000_000_000
