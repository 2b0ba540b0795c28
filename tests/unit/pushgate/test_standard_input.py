"""Lines of standard input come one by one, from pipes and from files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pushgate.standard_input import lines

pytestmark = pytest.mark.anyio


async def test_a_line_of_a_pipe_comes_before_the_pipe_ends() -> None:
    reading, writing = os.pipe()
    coming = lines(reading)
    os.write(writing, b"one\ntw")
    assert await anext(coming) == b"one"
    os.write(writing, b"o\r\n\nlast")
    os.close(writing)
    assert [line async for line in coming] == [b"two\r", b"", b"last"]
    os.close(reading)


async def test_a_file_is_read_likewise(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"one\n\xff\n" + b"x" * 200_000 + b"\n")
    opened = os.open(file, os.O_RDONLY)
    read = [line async for line in lines(opened)]
    os.close(opened)
    assert read == [b"one", b"\xff", b"x" * 200_000]


async def test_nothing_has_no_lines() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    assert [line async for line in lines(nothing)] == []
    os.close(nothing)
