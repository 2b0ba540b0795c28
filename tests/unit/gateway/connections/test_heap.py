"""The memory of a process, as glibc and CPython account for it.

Each test looks at a process of its own: in the tests' process, much memory is free from before.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import textwrap

import pytest

MIB = 1024 * 1024


def measured(body: str) -> dict[str, int]:
    """Run `body` in a process of its own, with a `heap`; return what it leaves in `found`."""
    script = "\n".join(
        (
            "import json",
            "from gateway.connections.heap import Heap",
            "heap, found, MIB = Heap(), {}, 1024 * 1024",
            "heap.give_back()",
            textwrap.dedent(body),
            "print(json.dumps(found))",
        )
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=60
    )
    found: dict[str, int] = json.loads(ended.stdout)
    return found


def test_a_process_knows_its_memory() -> None:
    found = measured(
        """
        found["before"] = heap.resident()
        kept = bytearray(b"x" * 50 * MIB)
        found["after"] = heap.resident()
        """
    )
    assert found["before"] > MIB
    assert found["after"] - found["before"] > 40 * MIB


def test_free_memory_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("needs glibc: other C libraries have no malloc_trim")
    found = measured(
        """
        found["before"] = heap.resident()
        kept = [bytes(1_000) for _ in range(50_000)]
        found["full"] = heap.resident()
        del kept[:-1]  # the last is at the heap's end, which glibc returns only when it is free
        heap.give_back()
        found["after"] = heap.resident()
        """
    )
    assert found["full"] - found["before"] > 40 * MIB
    assert found["after"] - found["before"] < 10 * MIB


def test_free_bytes_among_small_objects_are_known() -> None:
    found = measured(
        """
        free, resident = heap.reusable(), heap.resident()
        kept = [bytes(400) for _ in range(100_000)]
        found["free_when_full"] = heap.reusable() - free
        del kept[slice(0, None, 2)], kept[slice(0, None, 3)]
        found["resident"] = heap.resident() - resident
        found["free"] = heap.reusable() - free
        """
    )
    assert found["free_when_full"] < 5 * MIB
    assert found["resident"] > 30 * MIB, "each arena still has an object"
    assert found["free"] > 20 * MIB
