"""The one table of closes, and its copies in docs/protocol.md and in the browser client."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.connections.closes import CLOSES, Close, Next

ROOT = Path(__file__).parents[4]
PROTOCOL = ROOT / "docs" / "protocol.md"
CLIENT = ROOT / "client" / "src" / "ended.ts"


@pytest.mark.parametrize("close", CLOSES, ids=lambda close: str(close.code))
def test_the_protocol_documents_every_close(close: Close) -> None:
    assert f"| {close.code} | {close.reason} | {close.next.value} |" in _documented()


def test_the_protocol_documents_no_other_close() -> None:
    codes = [line.split(" ")[1] for line in _documented() if re.match(r"\| \d{4} \|", line)]
    assert codes == [str(close.code) for close in CLOSES]


def test_the_browser_client_does_next_what_the_table_says() -> None:
    [table] = re.findall(r"^const AFTER: .* = \{\n([^}]*)\};$", CLIENT.read_text(), re.MULTILINE)
    codes = {int(code): name for code, name in re.findall(r"^  (\d{4}): '(\w+)',$", table, re.M)}
    # The client does LATER what the table does not name.
    assert codes == {close.code: close.next.name for close in CLOSES if close.next != Next.LATER}


def test_no_code_stands_for_two_closes() -> None:
    assert len({close.code for close in CLOSES}) == len(CLOSES)


def _documented() -> list[str]:
    section = PROTOCOL.read_text().partition("\n## Closes\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")]
