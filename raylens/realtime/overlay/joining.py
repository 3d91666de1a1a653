"""Arabic letters that are joined without a shaper, by the characters that Unicode has for it."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

_FORMS = ("<isolated>", "<initial>", "<final>", "<medial>")
_PRESENTATION = ((0xFB50, 0xFDFF), (0xFE70, 0xFEFC))
_JOINER = "\u0640\u200d"
_LAM = "\u0644"
_LIGATURES = tuple(_LAM + alef for alef in "\u0622\u0623\u0625\u0627")
"""Lam and alef are written as one letter. Other ligatures are a matter of style."""


def join_letters(clusters: Sequence[str]) -> list[str]:
    """Return clusters with each Arabic letter in the form that joins it to those beside it."""
    letters, rest = _split_letters(clusters)
    joined = []
    for index, letter in enumerate(letters):
        before = index > 0 and _joins(letters[index - 1], letter)
        after = index + 1 < len(letters) and _joins(letter, letters[index + 1])
        forms = _forms().get(letter, {})
        joined.append(forms.get(_FORMS[after + 2 * before], letter) + rest[index])
    return joined


def _split_letters(clusters: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the letter, and the marks, of each cluster."""
    letters: list[str] = []
    rest: list[str] = []
    for cluster in clusters:
        if letters and letters[-1] == _LAM and _LAM + cluster[0] in _forms():
            letters[-1] += cluster[0]
            rest[-1] += cluster[1:]
        else:
            letters.append(cluster[0])
            rest.append(cluster[1:])
    return letters, rest


def _joins(before: str, after: str) -> bool:
    is_open = before in _JOINER or "<initial>" in _forms().get(before, {})
    return is_open and (after in _JOINER or "<final>" in _forms().get(after, {}))


@lru_cache(1)
def _forms() -> Mapping[str, Mapping[str, str]]:
    """Return the characters of each letter's forms."""
    forms: dict[str, dict[str, str]] = defaultdict(dict)
    for first, last in _PRESENTATION:
        for character in map(chr, range(first, last + 1)):
            form, *points = unicodedata.decomposition(character).split() or [""]
            letter = "".join(chr(int(point, 16)) for point in points)
            if form in _FORMS and (len(letter) == 1 or letter in _LIGATURES):
                forms[letter].setdefault(form, character)
    return forms
