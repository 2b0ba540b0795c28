"""What a process uses is told as the system has it, and costs little however many descriptors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from registry import process


def test_each_open_file_counts(tmp_path: Path) -> None:
    before = process.open_descriptors()
    files = [(tmp_path / str(number)).open("w") for number in range(50)]
    assert process.open_descriptors() == before + 50
    for file in files:
        file.close()
    assert process.open_descriptors() == before


def test_a_system_that_does_not_tell_the_number_has_its_descriptors_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(7):
        (tmp_path / str(number)).touch()

    class Older(type(tmp_path)):  # type: ignore[misc]
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            return os.stat_result((0,) * 10)

    monkeypatch.setattr(process, "_DESCRIPTORS", Older(tmp_path))
    assert process.open_descriptors() == 7


def test_memory_and_cpu_time_are_this_processs() -> None:
    memory, cpu = process.resident_bytes(), process.cpu_seconds()
    block = bytearray(os.urandom(1)) * (64 * 1024 * 1024)
    assert process.resident_bytes() > memory + 60 * 1024 * 1024
    del block
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert cpu + 0.04 < process.cpu_seconds() < cpu + 60
    assert time.time() - 3_600 < process.STARTED_AT < time.time()


def test_systems_without_proc_have_none_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "_DESCRIPTORS", tmp_path / "none")
    monkeypatch.setattr(process, "_STATM", tmp_path / "none")
    assert (process.open_descriptors(), process.resident_bytes()) == (0, 0)
