"""Text, made fit for drawing, and broken into lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import regex

from raylens.realtime.overlay.bidi import is_rtl

ELLIPSIS = "…"
MAX_CHARACTERS = 20_000
"""Characters of a text that are looked at."""
MAX_CLUSTER = 24
"""Characters of a cluster. Chains of consonants or joiners may be longer than a line."""
NARROWEST = 0.2
"""Width of the narrowest letters, in em: more of them than fit aren't measured."""

_NEWLINE = regex.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_SPACES = regex.compile(r"[\t\x1f\p{Zs}]+")
_DROPPED = regex.compile(
    r"[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}--\n\u200c\u200d\ufe0e\ufe0f]", regex.VERSION1
)
"""Joiners and variation selectors are needed within clusters."""
_SURROGATE = regex.compile(r"\p{Cs}")
_LONE_JOINERS = regex.compile(r"(?<=^|\s)[\u200c\u200d\ufe0e\ufe0f]+")
_JOINERS = regex.compile(r"([\u200c\u200d\ufe0e\ufe0f]{3})[\u200c\u200d\ufe0e\ufe0f]+")
_MARKS = regex.compile(r"(\p{M}{6})\p{M}+")
_CLUSTER = regex.compile(r"\X")
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\u3000-\u303f\uff01-\uff65]"
)
"""Scripts that are written without spaces."""
_CLOSING = frozenset(
    "、。，．！？：；）」』】〉》〕］｝…ー・ぁぃぅぇぉっゃゅょァィゥェォッャュョๆฯ!?,.:;)]}%”’"
)
"""Not at the start of a line."""
_OPENING = frozenset("（「『【〈《〔［｛([{“‘")
"""Not at the end of a line."""

Measure = Callable[[str], float]
"""Returns the width of a text."""


@dataclass(frozen=True)
class TextLine:
    """One line. ``is_rtl`` is the direction of its paragraph."""

    text: str
    is_rtl: bool = False


@lru_cache(64)
def clean(text: str) -> str:
    """Return text without what can't be drawn. Newlines stay, and spaces become simple ones."""
    text = _SURROGATE.sub("\ufffd", text[:MAX_CHARACTERS])
    text = _SPACES.sub(" ", _NEWLINE.sub("\n", text))
    text = _LONE_JOINERS.sub("", _DROPPED.sub("", text))
    text = unicodedata.normalize("NFC", _MARKS.sub(r"\1", _JOINERS.sub(r"\1", text)))
    return "\n".join(line.strip(" ") for line in text.split("\n") if line.strip(" "))


def clean_line(text: str) -> str:
    """Return text as :func:`clean` does, on one line."""
    return clean(text).replace("\n", " ")


def split_clusters(text: str) -> list[str]:
    """Return the grapheme clusters of a text: what a reader takes for one character."""
    return [
        cluster[start : start + MAX_CLUSTER]
        for cluster in _CLUSTER.findall(text)
        for start in range(0, len(cluster), MAX_CLUSTER)
    ]


def wrap(text: str, width: float, most: int, em: float, measure: Measure) -> tuple[TextLine, ...]:
    """Break clean text into at most ``most`` lines. What doesn't fit ends with an ellipsis."""
    lines: list[TextLine] = []
    limit = int(most * (width / (NARROWEST * em) + 2))
    for paragraph in text.split("\n"):
        direction = is_rtl(paragraph[:limit])
        for number, line in enumerate(_break(paragraph[:limit], width, measure)):
            if len(lines) == most:
                more = line if number else ""
                return (*lines[:-1], _cut_off(lines[-1], more, width, measure))
            lines.append(TextLine(line, direction))
        if len(paragraph) > limit and lines:
            return (*lines[:-1], _cut_off(lines[-1], "", width, measure))
    return tuple(lines)


def shorten(text: str, width: float, measure: Measure) -> str:
    """Return as much of a text as fits, with an ellipsis if that isn't all. It may be empty."""
    kept = _fitting(text, width, measure)
    if kept == text:
        return text
    kept = _fitting(text, width - measure(ELLIPSIS), measure).rstrip()
    return f"{kept}{ELLIPSIS}" if kept else ""


def _fitting(text: str, width: float, measure: Measure) -> str:
    """Return the longest start of a text that fits."""
    used, fits = 0.0, 0
    for cluster in split_clusters(text):
        used += measure(cluster)
        if used > width:
            break
        fits += len(cluster)
    return text[:fits]


def _cut_off(line: TextLine, more: str, width: float, measure: Measure) -> TextLine:
    """Return a line with an ellipsis, since text follows it.

    ``more`` is the next line of the paragraph. As it may be one long word, its start fills the room
    that is left.
    """
    text = f"{line.text} {more}" if more else line.text
    kept = _fitting(text, width - measure(ELLIPSIS), measure).rstrip(f" {ELLIPSIS}")
    return TextLine(f"{kept}{ELLIPSIS}", line.is_rtl)


def _break(text: str, width: float, measure: Measure) -> Iterator[str]:
    """Yield the lines of a paragraph."""
    line, used = "", 0.0
    space = measure(" ")
    for unit, is_after_space in _units(text):
        gap = space if is_after_space and line else 0.0
        length = measure(unit)
        if line and used + gap + length > width:
            yield line
            line, used, gap = "", 0.0, 0.0
        if length > width:
            *full, unit = _pieces(unit, width, measure)
            yield from full
            length = measure(unit)
        line += f" {unit}" if gap else unit
        used += gap + length
    if line:
        yield line


def _units(text: str) -> Iterator[tuple[str, bool]]:
    """Yield what stays on one line, and whether a space precedes it."""
    for word in text.split(" "):
        unit, is_after_space = "", True
        for cluster in split_clusters(word) if _UNSPACED.search(word) else [word]:
            if unit and _may_break(unit, cluster):
                yield unit, is_after_space
                unit, is_after_space = "", False
            unit += cluster
        if unit:
            yield unit, is_after_space


def _may_break(before: str, after: str) -> bool:
    if after[0] in _CLOSING or before[-1] in _OPENING:
        return False
    return bool(_UNSPACED.match(after) or _UNSPACED.match(before[-1]) or _UNSPACED.match(before))


def _pieces(word: str, width: float, measure: Measure) -> Iterator[str]:
    """Yield the parts of a word that is wider than a line."""
    piece, room = "", width
    for cluster in split_clusters(word):
        length = measure(cluster)
        if piece and length > room:
            yield piece
            piece, room = "", width
        piece += cluster
        room -= length
    yield piece
