from __future__ import annotations

import unicodedata

import pytest

from raylens.realtime.overlay.joining import join_letters


def forms(text: str) -> list[str]:
    return [
        unicodedata.name(cluster[0]).removeprefix("ARABIC LETTER ")
        for cluster in join_letters(list(text))
    ]


def test_letters_have_the_forms_of_their_places() -> None:
    assert forms("ببب") == ["BEH INITIAL FORM", "BEH MEDIAL FORM", "BEH FINAL FORM"]
    assert forms("ب") == ["BEH ISOLATED FORM"]


def test_letters_that_join_on_one_side_end_a_group() -> None:
    assert forms("دبد") == ["DAL ISOLATED FORM", "BEH INITIAL FORM", "DAL FINAL FORM"]


def test_lam_and_alef_are_one_letter() -> None:
    (before, ligature) = join_letters(list("بلا"))
    assert unicodedata.name(before) == "ARABIC LETTER BEH INITIAL FORM"
    assert unicodedata.name(ligature) == "ARABIC LIGATURE LAM WITH ALEF FINAL FORM"


def test_marks_do_not_separate_letters() -> None:
    assert join_letters(["ب\u064e", "ب"]) == ["\ufe91\u064e", "\ufe90"]


@pytest.mark.parametrize("text", ["abc", "שלום", "字", "12 .", ""])
def test_other_letters_stay_as_they_are(text: str) -> None:
    assert join_letters(list(text)) == list(text)


def test_spaces_separate_words() -> None:
    joined = join_letters(list("ب ب"))
    assert [unicodedata.name(letter) for letter in (joined[0], joined[2])] == [
        "ARABIC LETTER BEH ISOLATED FORM"
    ] * 2
