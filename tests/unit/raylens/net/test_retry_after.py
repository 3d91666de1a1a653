from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from raylens.net.retry_after import parse_retry_after

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("999999999", 60.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW + 3600, usegmt=True), 60.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
    ],
)
def test_seconds_and_dates_become_seconds_within_the_limit(header: str, seconds: float) -> None:
    assert parse_retry_after(header, 60.0, NOW) == seconds


@pytest.mark.parametrize(
    "header", [None, "", "soon", "-1", "1.5", "٣", "9" * 30, "Thu, 99 Foo 2023"]
)
def test_an_absent_or_malformed_header_is_ignored(header: str | None) -> None:
    assert parse_retry_after(header, 60.0, NOW) is None


def test_a_date_is_compared_with_the_clock_by_default() -> None:
    header = formatdate(time.time() + 30, usegmt=True)
    seconds = parse_retry_after(header, 60.0)
    assert seconds is not None
    assert 25 < seconds <= 30
