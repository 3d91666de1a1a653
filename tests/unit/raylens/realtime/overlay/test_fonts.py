from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raylens.realtime.overlay.fonts import REPLACEMENT, SHIPPED, Fonts

from .toy_fonts import write_collection, write_font


def names(fonts: Fonts, cluster: str) -> list[tuple[str, str]]:
    return [(text, face.path.stem) for text, face in fonts.faces_of(cluster)]


@pytest.mark.parametrize("text", ["aé", "Ωή", "Яё", "سلام", "שלום", "…", REPLACEMENT])
def test_the_shipped_font_comes_first(tmp_path: Path, text: str) -> None:
    write_font(tmp_path / "NotoSans-Regular.ttf", text)
    fonts = Fonts(folders=[tmp_path])
    for character in text:
        assert names(fonts, character) == [(character, SHIPPED.stem)]


def test_what_it_lacks_is_looked_up_in_installed_fonts_glyph_by_glyph(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    write_font(tmp_path / "Han.ttf", "字典")
    write_collection(tmp_path / "deep/er/Thai.TTC", ["xy", "ไท"])
    fonts = Fonts(folders=[tmp_path])
    assert names(fonts, "字") == [("字", "Han")]
    assert names(fonts, "ไ") == [("ไ", "Thai")]
    assert fonts.faces_of("ไ")[0][1].index == 1
    assert names(fonts, "a") == [("a", SHIPPED.stem)]


def test_extra_fonts_come_before_installed_ones(tmp_path: Path) -> None:
    write_font(tmp_path / "NotoSans-Regular.ttf", "字典")
    extra = write_font(tmp_path / "mine.bin", "字")
    fonts = Fonts([extra], [tmp_path])
    assert names(fonts, "字") == [("字", "mine")]
    assert names(fonts, "典") == [("典", "NotoSans-Regular")]


@pytest.mark.parametrize(
    "worse", ["ASans-Bold", "ASerif-Regular", "AMono", "ASans-Italic", "ASans-Light", "Arial"]
)
def test_plain_fonts_and_notos_are_preferred(tmp_path: Path, worse: str) -> None:
    write_font(tmp_path / f"{worse}.ttf", "字")
    write_font(tmp_path / "NotoSansZ-Regular.ttf", "字")
    assert names(Fonts(folders=[tmp_path]), "字") == [("字", "NotoSansZ-Regular")]


@pytest.mark.parametrize("text", ["😀", "❤\ufe0f", "👩\u200d👧"])
def test_pictures_come_from_a_font_with_colors(tmp_path: Path, text: str) -> None:
    """The shipped font has some of these characters, too."""
    write_font(tmp_path / "NotoSans.ttf", text)
    assert names(Fonts(folders=[tmp_path]), text)[0][1] != "Picture-Bold"
    write_font(tmp_path / "Picture-Bold.ttf", text, color=(250, 30, 30))
    assert names(Fonts(folders=[tmp_path]), text) == [(text, "Picture-Bold")]
    # As text, without the selector of pictures, or with that of text.
    assert names(Fonts(folders=[tmp_path]), "❤") == [("❤", SHIPPED.stem)]
    assert names(Fonts(folders=[tmp_path]), "😀\ufe0e") == [("😀\ufe0e", SHIPPED.stem)]


def test_a_character_that_no_font_has_is_replaced(tmp_path: Path) -> None:
    fonts = Fonts(folders=[tmp_path / "nowhere"])
    assert names(fonts, "字") == [(REPLACEMENT, SHIPPED.stem)]
    assert names(fonts, "\U0003fffe") == [(REPLACEMENT, SHIPPED.stem)]


def test_a_cluster_stays_in_one_font_if_one_has_all_of_it(tmp_path: Path) -> None:
    write_font(tmp_path / "A.ttf", "字")
    write_font(tmp_path / "B.ttf", "字\u0e49")
    write_font(tmp_path / "C.ttf", "典\u0e4a")
    fonts = Fonts(folders=[tmp_path])
    assert names(fonts, "字") == [("字", "A")]
    assert names(fonts, "字\u0e49") == [("字\u0e49", "B")]
    assert names(fonts, "字\u0e4a") == [("字", "A"), ("\u0e4a", "C")]
    assert names(fonts, "字\u0e4b") == [("字", "A"), (REPLACEMENT, SHIPPED.stem)]


@pytest.mark.parametrize("ignored", ["\u200d", "\ufe0f", "\u200d\ufe0f"])
def test_what_is_invisible_needs_no_glyph(tmp_path: Path, ignored: str) -> None:
    write_font(tmp_path / "A.ttf", "字")
    fonts = Fonts(folders=[tmp_path])
    assert names(fonts, f"字{ignored}") == [(f"字{ignored}", "A")]
    assert names(fonts, ignored) == []


def test_damaged_fonts_are_passed_over(tmp_path: Path) -> None:
    good = write_font(tmp_path / "Z.ttf", "字")
    (tmp_path / "A.ttf").write_bytes(good.read_bytes()[:300])
    (tmp_path / "B.otf").write_bytes(b"")
    (tmp_path / "C.ttf").symlink_to(tmp_path / "nothing")
    # A character map alone can be read, but not opened.
    data = good.read_bytes()
    (tmp_path / "D.ttf").write_bytes(data.replace(b"glyf", b"CFF ").replace(b"head", b"haed"))
    fonts = Fonts([tmp_path / "missing.ttf"], [tmp_path])
    assert names(fonts, "字") == [("字", "Z")]


def test_installed_fonts_are_read_once_and_only_if_needed(tmp_path: Path) -> None:
    folder = tmp_path / "fonts"
    folder.mkdir()
    write_font(folder / "A.ttf", "字")
    fonts = Fonts(folders=[folder])
    assert names(fonts, "a") == [("a", SHIPPED.stem)]
    write_font(folder / "B.ttf", "典")
    assert names(fonts, "典") == [("典", "B")]
    shutil.rmtree(folder)
    assert names(fonts, "字") == [("字", "A")]
