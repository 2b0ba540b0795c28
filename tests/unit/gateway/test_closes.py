"""The one table of closes, and its copy in the protocol's documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.closes import CLOSES, Close

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


@pytest.mark.parametrize("close", CLOSES, ids=lambda close: str(close.code))
def test_the_protocol_documents_every_close(close: Close) -> None:
    rows = [line for line in PROTOCOL.read_text().splitlines() if line.startswith("| ")]
    assert f"| {close.code} | {close.reason} | {close.next.value} |" in rows


def test_no_code_stands_for_two_closes() -> None:
    assert len({close.code for close in CLOSES}) == len(CLOSES)
