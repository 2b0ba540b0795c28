"""The memory of this very process, as glibc and CPython account for it."""

import ctypes

import pytest

from gateway.connections.heap import Heap

MIB = 1024 * 1024


@pytest.fixture
def heap() -> Heap:
    made = Heap()
    made.give_back()
    return made


def test_a_process_knows_its_memory(heap: Heap) -> None:
    before = heap.resident()
    assert before > MIB
    kept = bytearray(b"x" * 50 * MIB)
    assert heap.resident() - before > 40 * MIB
    assert len(kept) == 50 * MIB


def test_free_memory_is_given_back(heap: Heap) -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("needs glibc: other C libraries have no malloc_trim")
    before = heap.resident()
    kept = [bytes(1_000) for _ in range(50_000)]
    del kept[:-1]  # the last is at the heap's end, which glibc returns only when it is free
    heap.give_back()
    assert heap.resident() - before < 10 * MIB
    assert len(kept) == 1


def test_free_bytes_among_small_objects_are_known(heap: Heap) -> None:
    free, resident = heap.reusable(), heap.resident()
    kept = [bytes(400) for _ in range(100_000)]
    assert heap.reusable() - free < 5 * MIB
    del kept[slice(0, None, 2)], kept[slice(0, None, 3)]
    assert heap.resident() - resident > 30 * MIB, "each arena still has an object"
    assert heap.reusable() - free > 20 * MIB
