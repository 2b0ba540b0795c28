"""The memory mark: measured now and then, with hysteresis, and without what is free."""

from gateway.connections.memory import MemoryMark
from tests.unit.gateway.fakes import FakeMemory

NOW = 70_000.0
MARK = 1_000_000


def made() -> tuple[MemoryMark, FakeMemory]:
    memory = FakeMemory()
    return MemoryMark(MARK, memory), memory


def test_at_the_mark_it_does_not_flap() -> None:
    mark, memory = made()
    states = []
    for second, held in enumerate((1.0, 1.01, 0.99, 1.01, 0.96, 0.951, 0.94, 0.99, 0.999, 1.01)):
        memory.held = int(MARK * held)
        mark.advance(NOW + second)
        states.append(mark.reached)
    assert states == [False, True, True, True, True, True, False, False, False, True]


def test_what_can_be_given_back_is_given_back_and_is_no_shortage() -> None:
    mark, memory = made()
    memory.held, memory.free = MARK // 2, 2 * MARK
    mark.advance(NOW)
    assert not mark.reached
    assert memory.free == 0


def test_a_shortage_ends_though_freed_memory_stays_resident() -> None:
    mark, memory = made()
    memory.held = MARK + 1
    mark.advance(NOW)
    assert mark.reached
    memory.held, memory.free, memory.stuck = MARK // 4, MARK // 4, MARK // 2 + 1
    mark.advance(NOW + 1)
    assert not mark.reached


def test_free_memory_that_cannot_be_given_back_does_not_let_the_process_grow_without_end() -> None:
    mark, memory = made()
    memory.held, memory.stuck = MARK // 2, MARK // 2
    mark.advance(NOW)
    assert not mark.reached
    memory.held += MARK // 25
    mark.advance(NOW + 1)
    assert not mark.reached
    memory.held += MARK // 25
    mark.advance(NOW + 2)
    assert mark.reached, "resident memory is 8 % above the mark"


def test_it_is_measured_once_a_second_at_most() -> None:
    mark, memory = made()
    for tick in range(100):
        mark.advance(NOW + tick / 10)
    assert 9 <= memory.looks <= 10


def test_what_is_pushed_is_measured_at_once() -> None:
    mark, memory = made()
    mark.advance(NOW)
    memory.held = MARK + 1
    mark.pushed(1000, NOW)
    assert not mark.reached, "a single message is not worth a measurement"
    for _ in range(2):
        mark.pushed(1024 * 1024, NOW)
    assert mark.reached
    assert memory.looks <= 3, "once it is reached, a second decides"


def test_memory_is_given_back_once_a_second_at_most() -> None:
    mark, memory = made()
    for push in range(100):
        memory.held, memory.free = 0, MARK + 1
        mark.pushed(1024 * 1024, NOW + push / 50)
        mark.advance(NOW + push / 50)
    assert memory.times_given_back <= 2


def test_without_a_mark_the_memory_is_not_looked_at() -> None:
    memory = FakeMemory()
    memory.held = 1 << 60
    mark = MemoryMark(0, memory)
    mark.advance(NOW)
    mark.pushed(1 << 40, NOW)
    assert memory.looks == 0
    assert not mark.reached
