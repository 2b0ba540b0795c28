"""The lines of standard input, as they come, without holding up the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Final

_CHUNK_BYTES: Final = 1 << 16


async def lines(descriptor: int = 0) -> AsyncIterator[bytes]:
    """Yield lines without their line feeds; the last may lack a line feed."""
    unsplit = b""
    while chunk := await _read(descriptor):
        *whole, unsplit = (unsplit + chunk).split(b"\n")
        for line in whole:
            yield line
    if unsplit:
        yield unsplit


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a file, or a device such as /dev/null, is always readable
        return os.read(descriptor, _CHUNK_BYTES)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, _CHUNK_BYTES)
