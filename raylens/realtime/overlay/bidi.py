"""The order in which a line's characters are seen, if some are written from right to left.

This is the Unicode Bidirectional Algorithm (UAX #9) without explicit embeddings. Each font shapes
its own part of a line, so that no library that lays out one font's text can do it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby

RIGHT_TO_LEFT_MARK = "\u200f"
"""Invisible, and a letter as far as directions are concerned."""
_STRONG = {"L": False, "R": True, "AL": True}
_RTL = frozenset({"R", "AL", "AN"})
_DIRECTED = frozenset({"L", "R", "EN", "AN"})
_BRACKETS = dict(zip("([{⟨⟦〈《「『【〔（［｛", ")]}⟩⟧〉》」』】〕）］｝", strict=True))
_MAX_DEPTH = 63
_MIRRORED = str.maketrans("()[]{}<>«»‹›≤≥", ")(][}{><»«›‹≥≤")


def is_rtl(text: str) -> bool:
    """Return the direction of a paragraph: that of its first letter."""
    return next((_STRONG[kind] for kind in map(_kind, text) if kind in _STRONG), False)


def resolve_levels(clusters: Sequence[str], base: bool) -> list[int]:
    """Return the embedding level of each grapheme cluster of a line; odd ones are right to left.

    ``base`` is the direction of the paragraph.
    """
    kinds = [_kind(cluster[0]) for cluster in clusters]
    if not base and _RTL.isdisjoint(kinds):
        return [0] * len(kinds)
    kinds = _resolve_numbers(kinds, base)
    kinds = _resolve_brackets([cluster[0] for cluster in clusters], kinds, base)
    kinds = _resolve_neutrals(kinds, base)
    if base:
        return [1 if kind == "R" else 2 for kind in kinds]
    return [{"L": 0, "R": 1}.get(kind, 2) for kind in kinds]


def visual_order(levels: Sequence[int]) -> list[int]:
    """Return the indices of parts of a line from left to right (rule L2)."""
    order = list(range(len(levels)))
    for level in range(max(levels, default=0), 0, -1):
        order = _reverse_parts(order, [levels[index] >= level for index in order])
    return order


def _reverse_parts(order: list[int], is_deeper: Sequence[bool]) -> list[int]:
    """Return indices with each part that is deeper the other way round."""
    turned: list[int] = []
    for deeper, group in groupby(is_deeper):
        start = len(turned)
        part = order[start : start + len(list(group))]
        turned += reversed(part) if deeper else part
    return turned


def mirror(clusters: Sequence[str]) -> str:
    """Return a right-to-left part in the order in which it is seen, its brackets mirrored."""
    return "".join(reversed(clusters)).translate(_MIRRORED)


def _kind(character: str) -> str:
    return unicodedata.bidirectional(character) or "L"


def _resolve_numbers(kinds: Sequence[str], base: bool) -> list[str]:
    """Apply the rules W1 to W7: what numbers and their signs belong to."""
    kinds = ["ON" if kind in ("NSM", "BN") else kind for kind in kinds]
    strong = "R" if base else "L"
    for index, kind in enumerate(kinds):
        if kind in _STRONG:
            strong = kind
        elif kind == "EN" and strong == "AL":
            kinds[index] = "AN"
    kinds = _join_numbers(["R" if kind == "AL" else kind for kind in kinds])
    strong = "R" if base else "L"
    for index, kind in enumerate(kinds):
        if kind in _STRONG:
            strong = kind
        elif kind == "EN" and strong == "L":
            kinds[index] = "L"
    return kinds


def _join_numbers(kinds: list[str]) -> list[str]:
    """Apply W4 to W6: separators within numbers, and signs beside them."""
    for index in range(1, len(kinds) - 1):
        before, kind, after = kinds[index - 1 : index + 2]
        if before == after and (before, kind) in (("EN", "ES"), ("EN", "CS"), ("AN", "CS")):
            kinds[index] = before
    joined: list[str] = []
    for kind, group in groupby(kinds):
        count = len(list(group))
        following = kinds[len(joined) + count : len(joined) + count + 1]
        is_beside = joined[-1:] == ["EN"] or following == ["EN"]
        joined += ["EN" if kind == "ET" and is_beside else kind] * count
    return ["ON" if kind in ("ES", "ET", "CS") else kind for kind in joined]


def _resolve_brackets(characters: Sequence[str], kinds: list[str], base: bool) -> list[str]:
    """Apply N0: both brackets of a pair take the direction of what is within or before them."""
    default, other = ("R", "L") if base else ("L", "R")
    kinds = list(kinds)
    for start, end in _bracket_pairs(characters, kinds):
        inside = {_side(kind) for kind in kinds[start + 1 : end] if kind in _DIRECTED}
        before = next((_side(kind) for kind in kinds[:start][::-1] if kind in _DIRECTED), default)
        if default in inside:
            kinds[start] = kinds[end] = default
        elif other in inside:
            kinds[start] = kinds[end] = before
    return kinds


def _bracket_pairs(characters: Sequence[str], kinds: Sequence[str]) -> list[tuple[int, int]]:
    """Return where pairs of brackets begin and end, in order."""
    pairs: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []
    for index, character in enumerate(characters):
        if kinds[index] != "ON":
            continue
        if character in _BRACKETS and len(opened) < _MAX_DEPTH:
            opened.append((_BRACKETS[character], index))
        closing = [number for number, (end, _) in enumerate(opened) if end == character]
        if closing:
            pairs.append((opened[closing[-1]][1], index))
            del opened[closing[-1] :]
    return sorted(pairs)


def _resolve_neutrals(kinds: Sequence[str], base: bool) -> list[str]:
    """Apply N1 and N2: what is between takes the direction of both sides, else the base one.

    What ends the line takes the base direction, too (L1).
    """
    default = "R" if base else "L"
    resolved: list[str] = []
    before = default
    groups = [
        (is_neutral, list(group))
        for is_neutral, group in groupby(kinds, lambda kind: kind not in _DIRECTED)
    ]
    for number, (is_neutral, group) in enumerate(groups):
        if not is_neutral:
            resolved += group
            before = _side(group[-1])
            continue
        is_last = number == len(groups) - 1
        after = default if is_last else _side(groups[number + 1][1][0])
        resolved += [before if before == after else default] * len(group)
    return resolved


def _side(kind: str) -> str:
    return "L" if kind == "L" else "R"
