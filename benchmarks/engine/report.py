"""Rows of the table, on paper, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.limits import Machine
from benchmarks.engine.load import Load, Percentiles

HEADER = (
    "| workload | system | captions/s | tokens/s | first token p50 / p99 ms | between tokens p50 / p99 ms"
    " | of the limit | targets |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Check:
    """A ratio and what it should be."""

    of: str
    value: float
    target: float
    at_most: bool = False

    @property
    def ok(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        sign, verdict = "≤" if self.at_most else "≥", "ok" if self.ok else "**miss**"
        return f"{self.value:.2f} × {self.of} ({sign} {self.target:g}): {verdict}"


@dataclass(frozen=True)
class Row:
    """One system under one workload; what was not measured is None."""

    workload: str
    system: str
    captions_per_s: float | None = None
    tokens_per_s: float | None = None
    first: Percentiles | None = None
    between: Percentiles | None = None
    of_limit: float | None = None
    checks: tuple[Check, ...] = ()
    note: str = ""

    @classmethod
    def of(
        cls, workload: str, system: str, load: Load, limit_s: float, checks: Sequence[Check] = ()
    ) -> Row:
        """``limit_s``: the least seconds that a caption of this workload takes."""
        share = limit_s * load.captions_per_s
        return cls(
            workload,
            system,
            load.captions_per_s,
            load.tokens_per_s,
            load.first,
            load.between,
            share,
            tuple(checks),
        )

    def __str__(self) -> str:
        cells = [
            self.workload,
            self.system,
            "" if self.captions_per_s is None else f"{self.captions_per_s:.2f}",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f}",
            _pair(self.first),
            _pair(self.between),
            "" if self.of_limit is None else f"{self.of_limit:.0%}",
            "; ".join([*([self.note] if self.note else []), *map(str, self.checks)]),
        ]
        return f"| {' | '.join(cells)} |"


def _pair(pair: Percentiles | None) -> str:
    return "" if pair is None else f"{pair[0]:.0f} / {pair[1]:.0f}"


def write_json(path: Path, options: Any, machines: Sequence[Machine], rows: Sequence[Row]) -> None:
    told = [
        dataclasses.asdict(row)
        | {"checks": [dataclasses.asdict(check) | {"ok": check.ok} for check in row.checks]}
        for row in rows
    ]
    whole = {
        "options": dataclasses.asdict(options),
        "machines": list(map(dataclasses.asdict, machines)),
        "rows": told,
    }
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


BAR, GAP, LABEL, WIDTH = 16, 6, 330, 400
COLORS = {"engine": "#2f6fb3", "engine over HTTP": "#79a9d8"}
BASELINE_COLOR = "#b0b0b0"


def write_svg(path: Path, limits: str, rows: Sequence[Row]) -> None:
    """A bar for each row that has a limit: its share of it."""
    shown = [row for row in rows if row.of_limit is not None]
    height = 50 + len(shown) * (BAR + GAP) + 10
    title = f"Share of the machine's limit ({limits})"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + WIDTH + 60} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="20" font-size="14">{title}</text>',
    ]
    for quarter in range(5):
        x = LABEL + WIDTH * quarter // 4
        parts.append(f'<line x1="{x}" x2="{x}" y1="42" y2="{height - 10}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{x}" y="38" text-anchor="middle" fill="#666666">{25 * quarter}%</text>'
        )
    for number, row in enumerate(shown):
        y, share = 50 + number * (BAR + GAP), row.of_limit or 0.0
        color, wide = COLORS.get(row.system, BASELINE_COLOR), min(share, 1.1) * WIDTH
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{row.workload}: {row.system}</text>'
        )
        parts.append(
            f'<rect x="{LABEL}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{color}"/>'
        )
        parts.append(f'<text x="{LABEL + wide + 5:.1f}" y="{y + 12}">{share:.0%}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
