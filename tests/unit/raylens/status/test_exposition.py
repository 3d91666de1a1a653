"""Prometheus's text format is read as it is specified."""

from __future__ import annotations

import pytest

from raylens.status.exposition import parse_series, series_values


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("calls 3", 3.0),
        ('calls{a="b"} 1.5e-3', 0.0015),
        ('calls{a="b"} 2 1395066363000', 2.0),
        ('calls{a="x} y"} 4', 4.0),
        ("calls +Inf", float("inf")),
    ],
)
def test_a_series_has_a_value(line: str, value: float) -> None:
    assert [number for _, number in series_values(f"{line}\n", {"calls"})] == [value]


@pytest.mark.parametrize("line", ["# HELP calls help", "calls", 'calls{a="b"}', "calls{ x", ""])
def test_other_lines_are_skipped(line: str) -> None:
    assert list(series_values(f"{line}\nother 1\ncalls_total 1\n", {"calls"})) == []


def test_labels_are_unescaped() -> None:
    series = r'calls{path="C:\\new",text="a \"b\", c\nd",empty=""}'
    assert parse_series(series) == (
        "calls",
        {"path": r"C:\new", "text": 'a "b", c\nd', "empty": ""},
    )
    assert parse_series("calls") == ("calls", {})
