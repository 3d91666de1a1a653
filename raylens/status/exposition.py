"""Prometheus's text format, as Ray's nodes export their metrics.

Source: "Exposition formats", https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


def series_values(text: str, metrics: Collection[str]) -> Iterator[tuple[str, float]]:
    """Yield the series of some metrics with their values.

    A series is what stands before its value, such as ``ray_raylens_jobs{state="queued"}``. Lines
    that aren't in the format are skipped.
    """
    for line in text.splitlines():
        name, _, _ = line.partition("{")
        if name.partition(" ")[0] not in metrics:
            continue
        end = line.rfind("}") + 1 or line.find(" ")
        try:
            yield line[:end].rstrip(), float(line[end:].split()[0])  # a time may follow
        except (IndexError, ValueError):
            continue


def parse_series(series: str) -> tuple[str, dict[str, str]]:
    """Return a series' metric and labels."""
    name, _, labels = series.partition("{")
    return name, {key: _unescape(value) for key, value in _LABEL.findall(labels)}


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda match: {"n": "\n"}.get(match[1], match[1]), value)
