"""Rows of the result table, and their output as Markdown, JSON and SVG."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.limits import Machine
from benchmarks.engine.load import LoadResult, Percentiles

HEADER = (
    "| workload | system | captions/s | tokens/s | first token p50 / p99 ms"
    " | between tokens p50 / p99 ms | of the limit | targets |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Check:
    """A measured ratio and its target."""

    of: str
    """Name of the denominator."""
    value: float
    target: float
    at_most: bool = False
    """The target is an upper bound; otherwise it is a lower bound."""

    @property
    def ok(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        verdict = "ok" if self.ok else "**miss**"
        return f"{self.value:.2f} × {self.of} ({sign} {self.target:g}): {verdict}"


@dataclass(frozen=True)
class Row:
    """One system under one workload. None is a figure that was not measured."""

    workload: str
    system: str
    captions_per_s: float | None = None
    tokens_per_s: float | None = None
    first: Percentiles | None = None
    """Time to the first token, in milliseconds."""
    between: Percentiles | None = None
    """Time between tokens, in milliseconds."""
    of_limit: float | None = None
    """Share of the machine's limit, from 0 to 1."""
    checks: tuple[Check, ...] = ()
    note: str = ""

    @classmethod
    def from_load(
        cls,
        workload: str,
        system: str,
        load: LoadResult,
        limit_s: float,
        checks: Sequence[Check] = (),
    ) -> Row:
        """Make the row of a load. ``limit_s`` is the least seconds of one caption."""
        return cls(
            workload,
            system,
            load.captions_per_s,
            load.tokens_per_s,
            load.first,
            load.between,
            limit_s * load.captions_per_s,
            tuple(checks),
        )

    def __str__(self) -> str:
        notes = [self.note] if self.note else []
        cells = [
            self.workload,
            self.system,
            "" if self.captions_per_s is None else f"{self.captions_per_s:.2f}",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f}",
            _format_percentiles(self.first),
            _format_percentiles(self.between),
            "" if self.of_limit is None else f"{self.of_limit:.0%}",
            "; ".join([*notes, *map(str, self.checks)]),
        ]
        return f"| {' | '.join(cells)} |"


def _format_percentiles(percentiles: Percentiles | None) -> str:
    return "" if percentiles is None else f"{percentiles[0]:.0f} / {percentiles[1]:.0f}"


def write_json(path: Path, options: Any, machines: Sequence[Machine], rows: Sequence[Row]) -> None:
    document = {
        "options": dataclasses.asdict(options),
        "machines": list(map(dataclasses.asdict, machines)),
        "rows": list(map(_row_to_dict, rows)),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _row_to_dict(row: Row) -> dict[str, Any]:
    checks = [dataclasses.asdict(check) | {"ok": check.ok} for check in row.checks]
    return dataclasses.asdict(row) | {"checks": checks}


BAR = 16
"""Height of a bar, in pixels like all sizes of the plot."""
GAP = 6
LABEL = 330
"""Width of the labels beside the bars."""
WIDTH = 400
"""Width of a bar at 100%."""
COLORS = {"engine": "#2f6fb3", "engine over HTTP": "#79a9d8"}
BASELINE_COLOR = "#b0b0b0"


def write_svg(path: Path, limits: str, rows: Sequence[Row]) -> None:
    """Draw a bar for each row that has a share of the limit."""
    shares = [(row, row.of_limit) for row in rows if row.of_limit is not None]
    height = 50 + len(shares) * (BAR + GAP) + 10
    title = f"Share of the machine's limit ({limits})"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + WIDTH + 60} {height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="20" font-size="14">{title}</text>',
    ]
    for quarter in range(5):
        x = LABEL + WIDTH * quarter // 4
        parts.append(f'<line x1="{x}" x2="{x}" y1="42" y2="{height - 10}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{x}" y="38" text-anchor="middle" fill="#666666">{25 * quarter}%</text>'
        )
    for number, (row, share) in enumerate(shares):
        parts += _draw_bar(row, share, top=50 + number * (BAR + GAP))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _draw_bar(row: Row, share: float, top: int) -> list[str]:
    """Return the label, the bar and its percentage. ``top`` is the bar's upper edge."""
    color = COLORS.get(row.system, BASELINE_COLOR)
    length = min(share, 1.1) * WIDTH
    baseline = top + 12
    label = f"{row.workload}: {row.system}"
    return [
        f'<text x="{LABEL - 8}" y="{baseline}" text-anchor="end">{label}</text>',
        f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{color}"/>',
        f'<text x="{LABEL + length + 5:.1f}" y="{baseline}">{share:.0%}</text>',
    ]
