"""What a benchmark found: printed always, kept in results/ with `--save`."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
_README = RESULTS / "README.md"
#: Read here: a benchmark may keep itself to one core later.
_CORES = len(os.sched_getaffinity(0))
_HEAD = """\
# Results

Each line is the last saved run of one benchmark; the JSON file of that name has all of it. Figures
of different machines, and of different runs, are no comparison: only ratios within a run are.

| benchmark | figures | command | machine | date |
|---|---|---|---|---|
"""


@dataclass(slots=True)
class Report:
    """One benchmark's figures, and whether they are within its bounds."""

    name: str
    figures: dict[str, object] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def line(self, text: str) -> None:
        """Print a figure and keep it for the summary."""
        print(text, flush=True)
        self.summary.append(text)

    def bound(self, what: str, *, holds: bool) -> None:
        """Note whether a bound holds."""
        print(f"{'within' if holds else 'OVER'} the bound: {what}", flush=True)
        if not holds:
            self.failed.append(what)

    def finish(self, *, save: bool) -> None:
        """Save if asked to, then exit: 0 where every bound holds, else 1."""
        if save:
            self._save()
        sys.exit(1 if self.failed else 0)

    def _save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        command = " ".join(["python -m", f"loadtest.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        kept = {
            "command": command,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "over_the_bound": self.failed,
            "figures": self.figures,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        figures = "; ".join(self.summary)
        _put_line(
            f"| {self.name} |", f" {figures} | `{command}` | {machine()} | {kept['date']} |\n"
        )


def machine() -> str:
    """Name what the figures were measured on."""
    return f"{_CORES} cores, {platform.system()} {platform.release()}, {_python()}"


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _put_line(start: str, rest: str) -> None:
    """Replace the line that begins with `start`, or add it at the end."""
    lines = (_README.read_text() if _README.exists() else _HEAD).splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(start)]
    _README.write_text("".join([*kept, start + rest]))
