"""Overlaps of streamed text with a string that it may contain."""

from __future__ import annotations


def overlap(text: str, wanted: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``wanted``."""
    for length in range(min(len(text), len(wanted) - 1), 0, -1):
        if text.endswith(wanted[:length]):
            return length
    return 0
