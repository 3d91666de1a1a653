"""Fonts of a few characters, each a filled rectangle as wide as an em, less a margin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

UNITS = 1000


def make_font(
    characters: str,
    height: int = 800,
    ascent: int = 800,
    descent: int = -200,
    color: tuple[int, int, int] | None = None,
) -> TTFont:
    """Return a font whose glyphs are ``height`` thousandths of an em high, and may have a color."""
    names = {ord(character): f"g{ord(character):x}" for character in characters}
    builder = FontBuilder(UNITS, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: _rectangle(height) for name in (".notdef", *names.values())})
    builder.setupHorizontalMetrics({name: (UNITS, 100) for name in (".notdef", *names.values())})
    builder.setupHorizontalHeader(ascent=ascent, descent=descent)
    builder.setupNameTable({"familyName": "Toy", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if color:
        builder.setupCOLR({name: [(name, 0)] for name in names.values()})
        builder.setupCPAL([[(*(value / 255 for value in color), 1.0)]])
    return builder.font


def write_font(path: Path, characters: str, **form: Any) -> Path:
    make_font(characters, **form).save(path)
    return path


def write_collection(path: Path, faces: Sequence[str]) -> Path:
    collection = TTCollection()
    collection.fonts = [make_font(characters) for characters in faces]
    collection.save(path)
    return path


def _rectangle(height: int) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, height), (900, height), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()
