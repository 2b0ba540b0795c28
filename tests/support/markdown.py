"""The project's Markdown pages as a reader meets them: headings, links, code blocks, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
#: Folders of what is installed or built, in which pages are other people's.
_NOT_OURS: Final = frozenset({"node_modules", "build", "dist"})
_FENCE: Final = re.compile(r"^( *)(`{3,})(.*)$")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$")
#: A link or a picture, `[text](target)`, without a title; and `<a href="target">`.
_LINK: Final = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)|<a [^>]*href=\"([^\"]+)\"")
_CODE: Final = re.compile(r"(`+)(.+?)\1")
_CELL_END: Final = re.compile(r"(?<!\\)\|")


class Block(NamedTuple):
    """A fenced code block: its language (may be empty), its text, the number of its first line."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the project's root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def blocks(self) -> list[Block]:
        """All fenced code blocks, without the indentation of their fences."""
        found: list[Block] = []
        fence, start = None, 0
        lines = self.path.read_text().splitlines()
        for number, line in enumerate(lines):
            match = _FENCE.match(line)
            if fence is None and match:
                fence, start = match, number + 1
            elif fence is not None and match and match[2] == fence[2] and not match[3].strip():
                text = "\n".join(text.removeprefix(fence[1]) for text in lines[start:number])
                found.append(Block(fence[3].strip(), f"{text}\n", start + 1))
                fence = None
        assert fence is None, f"{self.name}:{start}: the block has no end"
        return found

    def block(self, language: str, containing: str) -> Block:
        """Return the one block of a language that contains a text."""
        found = [b for b in self.blocks if b.language == language and containing in b.text]
        assert len(found) == 1, f"{self.name}: {len(found)} {language} blocks with {containing!r}"
        return found[0]

    @property
    def prose(self) -> list[str]:
        """All lines; those of fenced code blocks and their fences are empty."""
        lines = self.path.read_text().splitlines()
        inside = False
        for number, line in enumerate(lines):
            if _FENCE.match(line):
                inside = not inside
                lines[number] = ""
            elif inside:
                lines[number] = ""
        return lines

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives to the headings."""
        found: dict[str, int] = {}
        for line in self.prose:
            if match := _HEADING.match(line):
                name = _anchor(match[1])
                found[name] = found.get(name, -1) + 1
        return {
            f"{name}-{n}" if n else name for name, last in found.items() for n in range(last + 1)
        }

    @property
    def links(self) -> Iterator[str]:
        """The targets of all links, as written; links inside of code are none."""
        text = _CODE.sub("", "\n".join(self.prose))
        for inline, html in _LINK.findall(text):
            yield inline or html

    def rows(self, heading: str) -> list[list[str]]:
        """Return the rows of the tables directly under a heading, as cells, without their heads."""
        lines = self.prose
        starts = [n for n, line in enumerate(lines) if _is_heading(line, heading)]
        assert len(starts) == 1, f"{self.name}: {len(starts)} headings {heading!r}"
        rows: list[list[str]] = []
        for line in lines[starts[0] + 1 :]:
            if _HEADING.match(line):
                break
            if line.startswith("|"):
                rows.append([cell.strip() for cell in _CELL_END.split(line)[1:-1]])
        rules = [n for n, row in enumerate(rows) if set("".join(row)) <= set("-: ")]
        heads = {n - 1 for n in rules}
        return [row for n, row in enumerate(rows) if n not in rules and n not in heads]


def pages() -> list[Page]:
    """Return all Markdown pages of the project."""
    found = sorted(ROOT.rglob("*.md"))
    return [Page(path) for path in found if _is_ours(path.relative_to(ROOT))]


def codes(cell: str) -> list[str]:
    """Return the texts in code in a table's cell."""
    return [text for _, text in _CODE.findall(cell)]


def _is_ours(path: Path) -> bool:
    return not any(part.startswith(".") or part in _NOT_OURS for part in path.parts)


def _is_heading(line: str, heading: str) -> bool:
    match = _HEADING.match(line)
    return match is not None and match[1] == heading


def _anchor(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
