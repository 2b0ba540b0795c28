"""A benchmark's figures: always printed, and with `--save` kept in results/."""

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
#: Read on import, because a benchmark may later restrict this process to one core.
_CORES = len(os.sched_getaffinity(0))
_HEAD = """\
# Results

Each row is the last saved run of one benchmark; the JSON file with the benchmark's name has all
figures of the run. Figures of different machines, or of different runs, can't be compared: only
ratios within one run can.

| benchmark | figures | command | machine | date |
|---|---|---|---|---|
"""


@dataclass(slots=True)
class Report:
    """One benchmark's figures, summary lines, and the bounds that do not hold."""

    name: str
    figures: dict[str, object] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def line(self, text: str) -> None:
        """Print a line of figures and add the line to the summary."""
        print(text, flush=True)
        self.summary.append(text)

    def bound(self, what: str, *, holds: bool) -> None:
        """Print whether a bound holds, and remember the bound where it does not."""
        print(f"{'within' if holds else 'OVER'} the bound: {what}", flush=True)
        if not holds:
            self.failed.append(what)

    def finish(self, *, save: bool) -> None:
        """Save the figures if `save` is set, then exit: with 0 where every bound holds, else 1."""
        if save:
            self._save()
        sys.exit(1 if self.failed else 0)

    def _save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        command = " ".join(["python -m", f"loadtest.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        date = time.strftime("%Y-%m-%d")
        document = {
            "command": command,
            "machine": machine(),
            "date": date,
            "over_the_bound": self.failed,
            "figures": self.figures,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        figures = "; ".join(self.summary)
        _put_line(f"| {self.name} |", f" {figures} | `{command}` | {machine()} | {date} |\n")


def machine() -> str:
    """Return what the figures depend on: cores, operating system and Python version."""
    return f"{_CORES} cores, {platform.system()} {platform.release()}, {_python()}"


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _put_line(start: str, rest: str) -> None:
    """Replace the line that begins with `start`, or add it at the end."""
    lines = (_README.read_text() if _README.exists() else _HEAD).splitlines(keepends=True)
    other_lines = [line for line in lines if not line.startswith(start)]
    _README.write_text("".join([*other_lines, start + rest]))
