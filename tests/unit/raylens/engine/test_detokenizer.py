from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylens.engine.detokenizer import Detokenizer
from testing.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()


def stream(text: str, *stop_strings: str) -> tuple[list[str], bool]:
    """Push the text byte by byte. Return the pieces, and whether a stop string ended it."""
    detokenizer = Detokenizer(TOKENIZER, stop_strings)
    pieces = []
    for byte in text.encode():
        pieces.append(detokenizer.push(byte))
        if detokenizer.stopped:
            return pieces, True
    return [*pieces, detokenizer.flush()], False


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_text_is_complete_and_has_no_half_characters(text) -> None:
    pieces, _ = stream("x" + text)
    assert "".join(pieces) == "x" + text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(
    st.text("ab€", max_size=12),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_answer_ends_before_the_first_stop_string(text, stop_strings) -> None:
    text = "x" + text
    pieces, stopped = stream(text, *stop_strings)
    matches = [(text.find(stop), stop) for stop in stop_strings if stop in text]
    assert stopped == bool(matches)
    if matches:
        # The stop string that is complete first ends the answer.
        first_end = min(start + len(stop) for start, stop in matches)
        text = text[: min(start for start, stop in matches if stop in text[:first_end])]
    assert "".join(pieces) == text


def test_leading_whitespace_is_dropped_once() -> None:
    pieces, _ = stream("  \n a b ")
    assert pieces[-1] == ""
    assert "".join(pieces) == "a b "
