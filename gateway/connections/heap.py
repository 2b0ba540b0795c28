"""The memory of this process: how much is resident, how much of that is free, and how to shrink it.

Freed memory is not given back to the system by itself. glibc returns only the end of its heap, and
CPython's allocator of small objects (at most 512 bytes) only arenas of 1 MiB without any object.
"""

from __future__ import annotations

import ctypes
import re
from typing import Final

from registry.process import resident_bytes

_ARENAS: Final = re.compile(rb"\d+ arenas \* \d+ bytes/arena += +([\d,]+)")
_ALLOCATED: Final = re.compile(rb"# bytes in allocated blocks += +([\d,]+)")


class Heap:
    """The memory of this process, for a MemoryMark."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._trim = getattr(libc, "malloc_trim", None)  # glibc's; None with another C library
        self._statistics = _Statistics(libc) if hasattr(libc, "open_memstream") else None

    def resident(self) -> int:
        """Return the process's resident memory, in bytes; 0 on systems without /proc/self/statm."""
        return resident_bytes()

    def give_back(self) -> None:
        """Give the pages that malloc has free to the system (10 ms for 150 MB of them)."""
        if self._trim is not None:
            self._trim(0)

    def reusable(self) -> int:
        """Return the free bytes in arenas of small objects; 0 where CPython does not tell.

        `give_back` can't shrink them: a single object keeps its arena resident. Objects of
        connections find their place there.
        """
        return 0 if self._statistics is None else self._statistics.free_bytes()


class _Statistics:
    """The report of CPython's allocator, which `sys._debugmallocstats` would print to stderr."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._report = ctypes.pythonapi._PyObject_DebugMallocStats
        self._report.argtypes = [ctypes.c_void_p]
        self._open, self._close, self._free = libc.open_memstream, libc.fclose, libc.free
        self._open.restype = ctypes.c_void_p
        self._close.argtypes = self._free.argtypes = [ctypes.c_void_p]

    def free_bytes(self) -> int:
        """Return the bytes of all arenas less those of the objects in the arenas."""
        report = self._read()
        arenas, allocated = _ARENAS.search(report), _ALLOCATED.search(report)
        if arenas is None or allocated is None:  # another allocator (PYTHONMALLOC) has no arenas
            return 0
        return _number(arenas[1]) - _number(allocated[1])

    def _read(self) -> bytes:
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        stream = self._open(ctypes.byref(text), ctypes.byref(size))
        if not stream:
            return b""
        self._report(stream)
        self._close(stream)
        try:
            return ctypes.string_at(text.value or 0, size.value)
        finally:
            self._free(text)


def _number(digits: bytes) -> int:
    return int(digits.replace(b",", b""))
