from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylens.realtime.overlay.wrapping import (
    MAX_CHARACTERS,
    MAX_CLUSTER,
    clean,
    clean_line,
    shorten,
    split_clusters,
    wrap,
)


def lines(text: str, width: int, most: int = 9) -> list[str]:
    """Wrap with letters of width 1."""
    return [line.text for line in wrap(clean(text), width, most, 1, len)]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\tb\u00a0c\u3000d", "a b c d"),
        ("  a  \r\n\r\n b\u2028c\x0bd  ", "a\nb\nc\nd"),
        ("a\x00\x07\x1b[31mb\x7f", "a[31mb"),
        ("a\u202eb\u2066c\u200bd\ufeffe\u00adf", "abcdef"),
        ("\u200d\ufe0fa", "a"),
        ("a\ud800b", "a\ufffdb"),
        ("e\u0301", "é"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("❤\ufe0f\u200d🔥", "❤\ufe0f\u200d🔥"),
        ("", ""),
        (" \n\t\n ", ""),
        ("\u200b\u200c\u200d", ""),
    ],
)
def test_only_what_can_be_drawn_is_left(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_one_line_has_no_newlines() -> None:
    assert clean_line(" a\nb\r\n\nc ") == "a b c"


def test_heaps_of_marks_are_cut_off() -> None:
    assert len(clean("a" + "\u0323" * 5000)) <= 7
    assert len(clean("क" + "\u200d" * 5000)) <= 4


def test_words_stay_whole() -> None:
    assert lines("one two three", 7) == ["one two", "three"]
    assert lines("one two three", 8) == ["one two", "three"]
    assert lines("one\ntwo three", 20) == ["one", "two three"]


def test_words_that_are_wider_than_a_line_are_broken() -> None:
    assert lines("a " + "w" * 7, 3) == ["a", "www", "www", "w"]
    assert lines("abc", 1) == ["a", "b", "c"]


def test_scripts_without_spaces_are_broken_between_characters() -> None:
    assert lines("日本語の文字", 4) == ["日本語の", "文字"]
    assert lines("ไทยดี", 3) == ["ไทย", "ดี"]
    assert lines("dog日本cat日", 5) == ["dog日本", "cat日"]


def test_punctuation_stays_with_what_it_belongs_to() -> None:
    assert lines("日本語。文字", 3) == ["日本", "語。文", "字"]
    assert lines("日本「文字」", 3) == ["日本", "「文", "字」"]


def test_a_cluster_is_never_broken() -> None:
    family = "👨\u200d👩\u200d👧"
    assert split_clusters(f"a{family}e\u0323x") == ["a", family, "e\u0323", "x"]
    assert [line.text for line in wrap(family * 2, 5, 3, 1, len)] == [family, family]


def test_chains_that_count_as_one_character_are_broken() -> None:
    assert max(map(len, split_clusters("क्" * 5000))) <= MAX_CLUSTER
    assert max(map(len, split_clusters("ᄀ" * 5000))) <= MAX_CLUSTER


def test_text_that_does_not_fit_ends_with_an_ellipsis() -> None:
    assert lines("one two three four", 9, 1) == ["one two…"]
    assert lines("one two three four", 7, 2) == ["one two", "three…"]
    assert lines("one\ntwo\nthree", 7, 2) == ["one", "two…"]
    assert lines("one " + "w" * 50, 9, 1) == ["one wwww…"]
    assert lines("一" * 60, 5, 2) == ["一" * 5, "一" * 4 + "…"]


def test_text_that_fits_has_none() -> None:
    assert lines("one two", 7, 1) == ["one two"]
    assert lines("one\ntwo", 3, 2) == ["one", "two"]


def test_each_paragraph_has_its_direction() -> None:
    wrapped = wrap("abc\nאבג דהו", 4, 9, 1, len)
    assert [(line.text, line.is_rtl) for line in wrapped] == [
        ("abc", False),
        ("אבג", True),
        ("דהו", True),
    ]


def test_a_short_text_is_shortened_only_if_it_must() -> None:
    assert shorten("abcd", 4, len) == "abcd"
    assert shorten("abcd", 3, len) == "ab…"
    assert shorten("ab cd", 4, len) == "ab…"
    assert shorten("abcd", 1, len) == ""
    assert shorten("", -1, len) == ""


def test_what_cannot_be_visible_is_not_measured() -> None:
    measured: list[str] = []

    def measure(text: str) -> float:
        measured.append(text)
        return len(text)

    wrapped = wrap("w" * MAX_CHARACTERS, 20, 3, 1, measure)
    assert [len(line.text) for line in wrapped] == [20, 20, 20]
    assert sum(map(len, measured)) < 3000
    measured.clear()
    wrap("a b " * (MAX_CHARACTERS // 4), 20, 3, 1, measure)
    assert len(measured) < 200


@pytest.mark.parametrize(
    "text", ["w", "a ", "a\n", "字", "e\u0323", "\u200d", "👩\u200d", "क्", "\x00", "א1", "\u0e49"]
)
def test_of_a_million_characters_few_are_measured(text: str) -> None:
    measured: list[str] = []

    def measure(part: str) -> float:
        measured.append(part)
        return float(len(split_clusters(part)))

    cleaned = clean(text * (1_000_000 // len(text)))
    assert len(cleaned) <= MAX_CHARACTERS
    assert len(wrap(cleaned, 80, 6, 1, measure)) <= 6
    assert sum(map(len, measured)) < 20_000


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(codec=None), max_size=60), width=st.integers(1, 12),
    most=st.integers(1, 5),
)  # fmt: skip
def test_any_text_becomes_lines_that_fit(text: str, width: int, most: int) -> None:
    wrapped = wrap(clean(text), width, most, 1, lambda part: len(split_clusters(part)))
    assert len(wrapped) <= most
    kept = "".join(line.text for line in wrapped).removesuffix("…").replace(" ", "")
    assert clean(text).replace("\n", "").replace(" ", "").startswith(kept)
    for line in wrapped:
        assert line.text == line.text.strip(" ")
        assert len(split_clusters(line.text)) <= width
        assert "\n" not in line.text
        assert not any(unicodedata.category(character) == "Cc" for character in line.text)
