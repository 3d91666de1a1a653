from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features

from raylens.realtime.overlay import Overlay
from raylens.realtime.overlay.blending import make_patch
from raylens.realtime.overlay.colors import WHITE
from raylens.realtime.overlay.fonts import system_folders
from raylens.realtime.overlay.typesetting import PatchCache, PlacedPatch, Typesetter
from raylens.realtime.overlay.wrapping import MAX_CHARACTERS, TextLine, clean

from .toy_fonts import write_font

SIZE = 24


@pytest.fixture(scope="module")
def typesetter(tmp_path_factory: pytest.TempPathFactory) -> Typesetter:
    """One without installed fonts."""
    return Typesetter(folders=[tmp_path_factory.mktemp("none")])


def ink(typesetter: Typesetter, text: str, is_rtl: bool = False) -> Any:
    return typesetter.draw(TextLine(text, is_rtl), SIZE, WHITE).alpha


@pytest.mark.parametrize(
    "text", ["Latin é", "Ελληνικά", "Кириллица", "العربية", "עברית", "12 #%", "…"]
)
def test_the_shipped_font_draws_its_scripts(typesetter: Typesetter, text: str) -> None:
    """Each character has ink of its own, which is not that of the replacement."""
    replacement = ink(typesetter, "\ufffd")
    for character in text.replace(" ", ""):
        drawn = ink(typesetter, character)
        assert drawn.sum() > 5
        assert drawn.shape != replacement.shape or not np.array_equal(drawn, replacement)


def test_what_no_font_has_is_seen_as_a_replacement(typesetter: Typesetter) -> None:
    replacement = ink(typesetter, "\ufffd")
    assert replacement.sum() > 50
    for character in "字ไक\U0003fffe\ue123":
        assert np.array_equal(ink(typesetter, character), replacement)


def test_a_line_takes_its_glyphs_from_several_fonts(tmp_path: Path) -> None:
    write_font(tmp_path / "Low.ttf", "字", height=300)
    write_font(tmp_path / "High.ttf", "ไ", height=800)
    typesetter = Typesetter(folders=[tmp_path])
    columns = ink(typesetter, "字ไ")
    low, high = columns[:, : SIZE - 4], columns[:, SIZE + 1 :]
    # Rectangles of three tenths, and of eight tenths, of an em.
    assert np.count_nonzero(low.max(axis=1) > 0.9) == pytest.approx(0.3 * SIZE, abs=1)
    assert np.count_nonzero(high.max(axis=1) > 0.9) == pytest.approx(0.8 * SIZE, abs=1)
    mixed = ink(typesetter, "a字b")
    assert mixed.shape[1] > ink(typesetter, "ab").shape[1] + 0.8 * SIZE


def test_a_font_that_is_removed_while_it_is_used_leaves_a_box(tmp_path: Path) -> None:
    font = write_font(tmp_path / "toy.ttf", "字", height=300)
    typesetter = Typesetter(folders=[tmp_path])
    ink(typesetter, "字")
    font.unlink()
    # At another size, the file would be read again.
    drawn = typesetter.draw(TextLine("字"), SIZE + 1, WHITE).alpha
    assert drawn.sum() > 20
    assert drawn.shape[0] > 0.5 * SIZE


def test_text_of_several_lines_does_not_need_the_installed_fonts(tmp_path: Path) -> None:
    typesetter = Typesetter(folders=[tmp_path])
    overlay = Overlay(np.zeros((240, 320, 3), np.uint8), 1.0, 1.0, typesetter=typesetter)
    overlay.text("a\nb\tc")
    overlay.query("a\nb", "c\n\nd")
    # They are read when they are needed: now.
    write_font(tmp_path / "toy.ttf", "字", height=300)
    assert ink(typesetter, "字").shape[0] == pytest.approx(0.3 * SIZE, abs=1)


@pytest.mark.parametrize("text", ["日本語", "中文", "한국어", "ไทย", "हिन्दी", "😀"])
def test_installed_fonts_draw_other_scripts(text: str) -> None:
    typesetter = Typesetter()
    replacement = ink(typesetter, "\ufffd")
    drawn = [ink(typesetter, character) for character in text if character.isalpha()]
    if any(np.array_equal(one, replacement) for one in drawn):
        pytest.skip(f"no font below {[*map(str, system_folders())]} has {text}")
    assert ink(typesetter, text).sum() > 50


@pytest.mark.parametrize("is_shaped", [False, True])
@pytest.mark.parametrize("text", ["سلام", "لا"])
def test_arabic_letters_are_joined(tmp_path: Path, is_shaped: bool, text: str) -> None:
    if is_shaped and not features.check("raqm"):
        pytest.skip("FriBidi, which shaping needs, is not installed")
    typesetter = Typesetter(folders=[tmp_path], is_shaped=is_shaped)
    apart = sum(typesetter.advance(letter, SIZE) for letter in text)
    assert typesetter.advance(text, SIZE) < 0.9 * apart
    # Joined letters have no column without ink between them.
    joined = ink(typesetter, text[:2], True)
    assert joined.max(axis=0).min() > 0


def test_letters_look_alike_with_and_without_a_shaper(tmp_path: Path) -> None:
    if not features.check("raqm"):
        pytest.skip("FriBidi, which shaping needs, is not installed")
    shaped, plain = (
        Typesetter(folders=[tmp_path], is_shaped=is_shaped) for is_shaped in (True, False)
    )
    for text in ("שלום (12)", "سلام 12", "plain text"):
        one, other = (ink(typesetter, text, text[0] != "p") for typesetter in (shaped, plain))
        assert abs(one.shape[1] - other.shape[1]) <= 4
        width = min(one.shape[1], other.shape[1])
        profiles = [picture[:, :width].sum(axis=0) for picture in (one, other)]
        assert np.corrcoef(*profiles)[0, 1] > 0.7


def test_text_is_as_wide_as_it_says(typesetter: Typesetter) -> None:
    for text in ("many words", "Ωδή", "שלום"):
        assert ink(typesetter, text).shape[1] == pytest.approx(
            typesetter.advance(text, SIZE), abs=4
        )
    assert typesetter.advance("aa", SIZE) == pytest.approx(2 * typesetter.advance("a", SIZE))


def test_wrapped_lines_are_no_wider_than_they_may_be(typesetter: Typesetter) -> None:
    text = clean("一" * 60 + " " + "w" * 3000 + " some words of an answer " * 30)
    lines = typesetter.wrap(text, 150, 12, SIZE)
    assert len(lines) == 12
    assert all(typesetter.advance(line.text, SIZE) <= 150 for line in lines)
    assert lines[-1].text.endswith("…")


@pytest.mark.parametrize("height", [1, 5, 12, 30, 100])
def test_the_largest_size_that_fits_is_found(typesetter: Typesetter, height: int) -> None:
    size = typesetter.largest_fit(60.0, height)
    assert typesetter.extent((), size).height <= max(height, 2)
    assert size == 60 or typesetter.extent((), size + 1).height > height


@pytest.mark.parametrize(
    "text",
    ["", " ", "\u0301", "\u200d", "a\u200d", "(((", "\ufe0f", "\U000e0001", "a" * 2000, "א\u0301("],
)
@pytest.mark.parametrize("is_shaped", [None, False])
def test_odd_text_is_drawn(tmp_path: Path, text: str, is_shaped: bool | None) -> None:
    typesetter = Typesetter(folders=[tmp_path], is_shaped=is_shaped)
    for is_rtl in (False, True):
        drawn = typesetter.draw(TextLine(text, is_rtl), SIZE, WHITE)
        assert drawn.alpha.shape == drawn.color.shape[:2]
        assert drawn.alpha.min() >= 0
        assert drawn.alpha.max() <= 1


def test_the_same_text_is_laid_out_and_drawn_once(tmp_path: Path) -> None:
    typesetter = Typesetter(folders=[tmp_path])
    text = clean("some words " * 40)
    lines = typesetter.wrap(text, 300, 4, SIZE)
    first = [typesetter.line_patch(line, SIZE, WHITE, 1.0) for line in lines]
    measured = typesetter.advance.cache_info().misses
    again = typesetter.wrap(text[:5] + text[5:], 300, 4, SIZE)
    assert all(
        typesetter.line_patch(line, SIZE, WHITE, 1.0) is patch
        for line, patch in zip(again, first, strict=True)
    )
    assert typesetter.advance.cache_info().misses == measured
    assert typesetter.line_patch(lines[0], SIZE, WHITE, 0.5) is not first[0]


def placed(height: int) -> PlacedPatch:
    flat = np.zeros((height, 100), np.float32)
    return PlacedPatch(make_patch(np.zeros((height, 100, 3), np.float32), flat, 1.0), 0, 0)


def test_the_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    cache = PatchCache(capacity=3 * placed(10).patch.nbytes)
    made = {key: cache.get(key, lambda: placed(10)) for key in "abc"}
    assert cache.get("a", lambda: placed(10)) is made["a"]
    cache.get("d", lambda: placed(10))
    assert cache.get("a", lambda: placed(10)) is made["a"]
    assert cache.get("b", lambda: placed(10)) is not made["b"]
    assert cache.nbytes == 3 * placed(10).patch.nbytes


def test_what_is_larger_than_the_cache_is_made_but_not_kept() -> None:
    cache = PatchCache(capacity=10)
    assert cache.get("a", lambda: placed(10)).patch.height == 10
    assert cache.nbytes == 0


def test_threads_share_a_typesetter(tmp_path: Path) -> None:
    typesetter = Typesetter(folders=[tmp_path])
    expected = ink(typesetter, "word 0")
    seen: list[bool] = []

    def work() -> None:
        for number in range(40):
            typesetter.line_patch(TextLine(f"word {number}"), SIZE, WHITE, 1.0)
            seen.append(np.array_equal(ink(typesetter, "word 0"), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160
    assert all(seen)


def test_as_much_text_as_is_looked_at_is_laid_out(typesetter: Typesetter) -> None:
    lines = typesetter.wrap(clean("字" * 2 * MAX_CHARACTERS), 500, 7, SIZE)
    assert len(lines) == 7
    # What isn't visible isn't measured, character by character.
    assert sum(len(line.text) for line in lines) < 300
