"""Open files and memory of a host, judged for a gateway that would run there."""

from __future__ import annotations

from typing import Any

import pytest

from pushgate.doctor.finding import Severity
from pushgate.doctor.host import judge_descriptors, judge_memory
from pushgate.settings import DoctorSettings

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("wanted", "most", "severity", "words"),
    [
        (None, 20_000, Severity.OK, "20,000 connections"),
        (None, 10_000, Severity.OK, "10,000 connections"),
        (None, 9_999, Severity.WARNING, "9,999 connections"),
        (20_000, 20_000, Severity.OK, "20,000 connections"),
        (30_000, 20_000, Severity.FAULT, "PUSHGATE_MAX_CONNECTIONS is 30,000"),
    ],
)
def test_descriptors(wanted: int | None, most: int, severity: Severity, words: str) -> None:
    finding = judge_descriptors(DoctorSettings(max_connections=wanted), most=most)
    assert finding.severity is severity
    assert words in finding.what


@pytest.mark.parametrize(
    ("settings", "limit", "severity", "words"),
    [
        ({}, 512 * MIB, Severity.OK, "a limit of memory is found"),
        ({}, None, Severity.NOTE, "no limit of memory is found"),
        ({"max_memory_bytes": 400 * MIB}, None, Severity.OK, "PUSHGATE_MAX_MEMORY_BYTES is"),
        ({"max_memory_bytes": 400 * MIB, "workers": 2}, 512 * MIB, Severity.WARNING, "2 workers"),
        ({"max_memory_bytes": 256 * MIB, "workers": 2}, 512 * MIB, Severity.OK, "is found"),
        ({"max_memory_bytes": 0}, 512 * MIB, Severity.WARNING, "PUSHGATE_MAX_MEMORY_BYTES is 0"),
        ({"workers": 4}, 512 * MIB, Severity.OK, "is found"),
        ({"workers": 4}, 512 * MIB - 1, Severity.WARNING, "for 4 workers"),
    ],
)
def test_memory(
    settings: dict[str, Any], limit: int | None, severity: Severity, words: str
) -> None:
    finding = judge_memory(DoctorSettings(**settings), limit=limit)
    assert finding.severity is severity
    assert words in finding.what
