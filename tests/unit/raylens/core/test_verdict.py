from __future__ import annotations

import pytest

from raylens.core.verdict import parse_yes_or_no


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", True),
        ("  YES!", True),
        ("Yes, somebody is.", True),
        ("**Yes**", True),
        ("No: nobody is there", False),
        ("no", False),
        ("No. No one is there", False),
        ("No one.", False),
        ("Yes, no doubt", True),
        ("yes or no", None),
        ("Yes/No", None),
        ("Not sure", None),
        ("yesterday", None),
        ("I think yes", None),
        ("nothing", None),
        ("", None),
        (None, None),
    ],
)
def test_the_first_word_of_an_answer_decides(text, verdict) -> None:
    assert parse_yes_or_no(text) is verdict
