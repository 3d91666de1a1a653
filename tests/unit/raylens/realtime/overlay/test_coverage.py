from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from fontTools.ttLib.tables.DefaultTable import DefaultTable
from hypothesis import given, settings
from hypothesis import strategies as st

from raylens.realtime.overlay.coverage import BadFont, read_coverage
from raylens.realtime.overlay.fonts import SHIPPED

from .toy_fonts import make_font, write_collection, write_font


def test_the_shipped_fonts_characters_are_those_that_fonttools_reads() -> None:
    (coverage,) = read_coverage(SHIPPED)
    assert coverage.characters.tolist() == sorted(TTFont(SHIPPED).getBestCmap())
    assert not coverage.has_color


@pytest.mark.parametrize("characters", ["a", "abcxyz", "aé字", "a\U0001f600\U0010fffd", "\uffef"])
def test_characters_are_read_within_and_beyond_the_basic_plane(
    tmp_path: Path, characters: str
) -> None:
    (coverage,) = read_coverage(write_font(tmp_path / "toy.ttf", characters))
    assert "".join(map(chr, coverage.characters)) == "".join(sorted(characters))


def test_a_map_with_indirect_glyphs_leaves_out_what_has_none(tmp_path: Path) -> None:
    """Glyph numbers are in an array here. 0 is none, and so is what the delta makes 0."""
    font = make_font("abcdef")
    header = struct.pack(">HHHHI", 0, 1, 3, 1, 12)
    body = struct.pack(">HHHHHHH", 4, 44, 0, 4, 0, 0, 0)
    body += struct.pack(">HHH", 0x66, 0xFFFF, 0) + struct.pack(">HH", 0x61, 0xFFFF)
    body += struct.pack(">hH", -1, 1) + struct.pack(">HH", 4, 0)
    body += struct.pack(">HHHHHH", 2, 0, 4, 1, 6, 7)
    font["cmap"] = _raw_table("cmap", header + body)
    path = tmp_path / "toy.ttf"
    font.save(path)
    (coverage,) = read_coverage(path)
    assert "".join(map(chr, coverage.characters)) == "acef"


def _raw_table(tag: str, data: bytes) -> DefaultTable:
    table = DefaultTable(tag)
    table.data = data
    return table


def test_each_face_of_a_collection_is_read(tmp_path: Path) -> None:
    faces = read_coverage(write_collection(tmp_path / "toys.ttc", ["ab", "cd"]))
    assert [(face.index, "".join(map(chr, face.characters))) for face in faces] == [
        (0, "ab"),
        (1, "cd"),
    ]


@pytest.mark.parametrize("tag", ["CBDT", "sbix", "COLR"])
def test_fonts_with_colors_are_known(tmp_path: Path, tag: str) -> None:
    font = make_font("a")
    font[tag] = _raw_table(tag, struct.pack(">HH", 0, 0))
    font.save(tmp_path / "toy.ttf")
    (coverage,) = read_coverage(tmp_path / "toy.ttf")
    assert coverage.has_color
    if tag == "COLR":
        font[tag].data = struct.pack(">HH", 1, 0)
        font.save(tmp_path / "gradients.ttf")
        with pytest.raises(BadFont, match="gradients"):
            read_coverage(tmp_path / "gradients.ttf")


@pytest.mark.parametrize(
    "data", [b"", b"ttcf", b"no font at all, but long enough", b"\0\1\0\0\0\5"]
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "toy.ttf"
    path.write_bytes(data)
    with pytest.raises(BadFont, match=r"toy\.ttf"):
        read_coverage(path)


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, 2000),
    values=st.binary(min_size=1, max_size=4),
    end=st.integers(1, 3000),
)
def test_a_damaged_font_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, values: bytes, end: int
) -> None:
    path = tmp_path_factory.mktemp("fonts") / "toy.ttf"
    data = bytearray(write_font(path, "abc字\U0001f600").read_bytes())
    position %= len(data)
    data[position : position + len(values)] = values
    path.write_bytes(data[:end])
    try:
        faces = read_coverage(path)
    except BadFont:
        return
    for face in faces:
        assert (np.diff(face.characters) > 0).all()
