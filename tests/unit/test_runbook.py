"""docs/runbook.md: each fault has its four parts, and what it quotes and cites exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

import pytest

from gateway import metrics as gateway_metrics
from processor import metrics as processor_metrics
from tests.drill.rows import ROWS
from tests.support.markdown import ROOT, Page, codes
from tests.support.spelled import sources

PAGE: Final = Page(ROOT / "docs" / "runbook.md")
TROUBLESHOOTING: Final = (ROOT / "docs" / "troubleshooting.md").read_text()
PARTS: Final = ["Seen", "Means", "Do", "Tried"]
#: Code spans with spaces that are nobody's words: what one types.
TYPED: Final = re.compile(r"(GET|DELETE|curl|make|ss|pushgate|redis-cli|ulimit|maxmemory-policy) ")
EXPOSED: Final = (gateway_metrics.exposition() + processor_metrics.exposition()).decode()


def sections() -> dict[str, dict[str, str]]:
    """Return the parts of each section, by its heading and the part's name."""
    found = {}
    for section in "\n".join(PAGE.prose).split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        parts = re.split(r"^- \*\*(\w+)\*\*:\s", body, flags=re.MULTILINE)
        found[heading] = dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


SECTIONS: Final = sections()


def texts_of_the_code() -> Iterator[str]:
    folders = [path.parent for package in ("gateway", "processor", "registry", "pushgate")
               for path in (ROOT / package).rglob("*.py")]  # fmt: skip
    for file in sources(*sorted({str(f.relative_to(ROOT)) for f in folders})):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_faults_are_numbered_without_a_hole() -> None:
    assert [int(heading.partition(".")[0]) for heading in SECTIONS] == list(range(1, 34))


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_fault_has_its_parts(heading: str) -> None:
    assert list(SECTIONS[heading]) == PARTS


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_row_of_the_drill_or_a_test_makes_the_fault(heading: str) -> None:
    tried = SECTIONS[heading]["Tried"]
    cited = codes(" ".join(tried.split()))
    rows = re.findall(r"[0-9]+(?:-[a-z]+)?", tried.partition("`")[0])
    assert cited or rows
    assert set(rows) <= {row.name for row in ROWS}


def test_metrics_exist() -> None:
    named = set(re.findall(r"pushgate_[a-z_]+", PAGE.path.read_text()))
    assert {name for name in named if f"# TYPE {name} " not in EXPOSED} == set()


def test_quoted_words_are_the_codes_own() -> None:
    spans = codes(" ".join("\n".join(PAGE.prose).split()))
    words = [c for c in spans if c.count(" ") > 1 and not c.startswith("pushgate_")]
    words = [part for c in words if not TYPED.match(c) for part in c.split("; ")]
    words += [label for c in spans for label in re.findall(r'="([^"]+)"}', c)]
    said = "\n".join(texts_of_the_code()) + TROUBLESHOOTING
    assert len(words) > 40
    assert [text for text in words if text.rstrip("…;:, ") not in said] == []
