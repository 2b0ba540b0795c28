"""A batch's writes: all sockets with an empty backlog are written to in one loop of C code.

A write to a socket evicts most of the interpreter from the CPU's caches (measured: a cost of 0.8 of
6.3 µs a message). So all Python code runs before the first write or after the last write. Messages
for one socket are joined: behind a backlog a batch has several for a user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from gateway.wires import Wire

#: Bytes of messages that are joined for one socket. More would be copied for a write of which the
#: kernel takes a part.
_MOST_JOINED_BYTES: Final = 64 * 1024


def write_at_once(wires: Sequence[Wire | None], datas: Sequence[bytes]) -> list[int]:
    """Write `datas[n]` to the socket of `wires[n]` where the kernel takes it at once.

    Writes to one socket go out as one, in order. Returns, in ascending order, the positions n that
    the caller still has to write: positions without a wire or without a direct descriptor, writes
    of which the kernel took no byte, and what is beyond 64 KiB for one socket. A write of which the
    kernel took a part is finished by the wire, and is not returned.
    """
    first: dict[int, int] = {}  # descriptor → the first of its positions
    several: dict[int, list[int]] = {}  # descriptor → its positions, where it has several
    later: list[int] = []
    for position, wire in enumerate(wires):
        descriptor = -1 if wire is None else wire.direct
        if descriptor < 0:
            later.append(position)
        elif (earlier := first.setdefault(descriptor, position)) != position:
            several.setdefault(descriptor, [earlier]).append(position)
    descriptors, positions = list(first), list(first.values())
    all_at_once = len(positions) == len(datas)
    writes = datas if all_at_once else [datas[position] for position in positions]
    if several:
        writes = [
            _joined(datas, several[descriptor], later) if descriptor in several else write
            for descriptor, write in zip(descriptors, writes, strict=True)
        ]
    counts = _write_each(descriptors, writes)
    if counts != list(map(len, writes)):  # nearly never: a comparison in C
        for descriptor, position, write, count in zip(
            descriptors, positions, writes, counts, strict=True
        ):
            wire = wires[position]
            if count < len(write) and wire is not None:
                later += _finished(wire, datas, several.get(descriptor, [position]), count)
    later.sort()
    return later


def _joined(datas: Sequence[bytes], positions: list[int], later: list[int]) -> bytes:
    """Join the writes to one socket; move the positions beyond the bound to `later`."""
    size = 0
    for number, position in enumerate(positions):
        size += len(datas[position])
        if number and size > _MOST_JOINED_BYTES:
            later += positions[number:]
            del positions[number:]
            break
    return b"".join([datas[position] for position in positions])


def _finished(
    wire: Wire, datas: Sequence[bytes], positions: Sequence[int], count: int
) -> Sequence[int]:
    """Let a wire finish the write in which the kernel stopped after `count` bytes of all writes.

    Returns the positions of the writes of which the kernel took no byte.
    """
    for number, position in enumerate(positions):
        data = datas[position]
        if count < len(data):
            if not count:
                return positions[number:]
            wire.finish(data[count:])
            return positions[number + 1 :]
        count -= len(data)
    return ()


def _write_each(descriptors: Sequence[int], datas: Sequence[bytes]) -> list[int]:
    """Return how many bytes of every write were sent; 0 where a write failed, for any reason."""
    counts: list[int] = []
    while len(counts) < len(descriptors):
        written = len(counts)
        try:
            counts.extend(map(os.write, descriptors[written:], datas[written:]))
        except OSError:
            counts.append(0)
    return counts
