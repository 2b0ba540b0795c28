"""Draws the panels of the Grafana dashboard as one SVG, from the answers of a Prometheus.

    python -m loadtest.dashboard http://localhost:9090 OUT.svg --seconds 300

The queries are those of deploy/grafana/dashboard.py. A picture for documents, and a look at a
system where there is no Grafana; all series of a panel have one axis, from 0 to the largest value.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import runpy
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = runpy.run_path(
    str(Path(__file__).parents[1] / "deploy" / "grafana" / "dashboard.py")
)["ROWS"]
COLOURS: Final = ("#2f6fb5", "#c8553d", "#3a8f5c", "#8a5fb0", "#b8860b", "#4b8f9e", "#a04668")
#: Of the picture, in pixels.
WIDTH, COLUMNS, PANEL_HEIGHT, ROW_HEIGHT = 1_200, 3, 150, 34
GRAPH_HEIGHT, LEGEND_LINES, MARGIN = 70, 3, 12

Series = tuple[str, list[tuple[float, float]]]


class Asked:
    """A Prometheus, asked for a span of time."""

    def __init__(self, url: str, *, seconds: float, rate_seconds: float) -> None:
        self.end = time.time()
        self.start = self.end - seconds
        self._url = url
        self._variables = {"$__rate_interval": f"{int(rate_seconds)}s", "$instance": ".*"}

    def series(self, query: str, legend: str) -> Iterator[Series]:
        """Yield the series of a query, each with its legend."""
        for variable, value in self._variables.items():
            query = query.replace(variable, value)
        step = max(1, int((self.end - self.start) / 120))
        times = {"start": self.start, "end": self.end, "step": step}
        words = urllib.parse.urlencode({"query": query, **times})
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{words}") as answer:
            found = json.load(answer)["data"]["result"]
        for each in found:
            values = [(at, float(value)) for at, value in each["values"]]
            known = [(at, value) for at, value in values if math.isfinite(value)]
            yield _filled_in(legend, each["metric"]), known


def _filled_in(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return re.sub(r" ?\{\{.*?\}\}", "", legend)  # labels that a series has not


def drawn(rows: Sequence[Any], asked: Asked) -> str:
    """Return the SVG."""
    parts: list[str] = []
    y = MARGIN
    for row in rows:
        parts.append(f'<text class="row" x="{MARGIN}" y="{y + 22}">{escape(row.title)}</text>')
        y += ROW_HEIGHT
        for number, panel in enumerate(row.panels):
            x = MARGIN + number % COLUMNS * (WIDTH // COLUMNS)
            parts.append(_panel(panel, asked, x, y + number // COLUMNS * PANEL_HEIGHT))
        y += math.ceil(len(row.panels) / COLUMNS) * PANEL_HEIGHT
    style = (
        "text{font:11px sans-serif;fill:#333}.row{font:bold 15px sans-serif}"
        ".title{font:bold 12px sans-serif}polyline{fill:none;stroke-width:1.5}"
    )
    size = f'viewBox="0 0 {WIDTH} {y + MARGIN}" width="{WIDTH}" height="{y + MARGIN}"'
    sheet = f'<rect width="{WIDTH}" height="{y + MARGIN}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{sheet}' + (
        "\n".join(parts) + "</svg>\n"
    )


def _panel(panel: Any, asked: Asked, x: int, y: int) -> str:
    series = [each for query in panel.queries for each in asked.series(query.text, query.legend)]
    most = max((value for _, values in series for _, value in values), default=0.0)
    width = WIDTH // COLUMNS - 2 * MARGIN
    lines = [
        f'<text class="title" x="{x}" y="{y + 12}">{escape(panel.title)}</text>',
        f'<text x="{x + width}" y="{y + 12}" text-anchor="end">{_number(most, panel.unit)}</text>',
        f'<rect x="{x}" y="{y + 18}" width="{width}" height="{GRAPH_HEIGHT}" fill="#f4f6f8"/>',
    ]
    for number, (legend, values) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(
            f"{x + width * (at - asked.start) / (asked.end - asked.start):.1f},"
            f"{y + 18 + GRAPH_HEIGHT * (1 - value / (most or 1)):.1f}"
            for at, value in values
        )
        lines.append(f'<polyline points="{points}" stroke="{colour}"/>')
        if number < 2 * LEGEND_LINES:
            place = (
                f'x="{x + number % 2 * width // 2}" y="{y + 32 + GRAPH_HEIGHT + number // 2 * 14}"'
            )
            last = _number(values[-1][1], panel.unit) if values else "–"
            lines.append(f'<text {place} style="fill:{colour}">■ {escape(legend)} {last}</text>')
    return "\n".join(lines)


def _number(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    if unit == "s" and value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g}{' s' if unit == 's' else ' /s' if unit == 'ops' else ''}"


def main() -> None:
    """Draw the dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a Prometheus, e.g. http://localhost:9090")
    parser.add_argument("out", type=Path, help="the SVG to write")
    parser.add_argument("--seconds", type=float, default=300.0, help="how far back")
    parser.add_argument("--rate-seconds", type=float, default=60.0, help="the window of rates")
    asked_for = parser.parse_args()
    asked = Asked(asked_for.url, seconds=asked_for.seconds, rate_seconds=asked_for.rate_seconds)
    asked_for.out.write_text(drawn(DASHBOARD, asked))


if __name__ == "__main__":
    main()
