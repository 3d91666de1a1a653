from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylens.engine.detokenizer import TextStream
from tests.unit.raylens.engine.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer()


def stream(text: str, *stop: str) -> tuple[list[str], bool]:
    out = TextStream(TOKENIZER, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(out.push(byte))
        if out.stopped:
            return pieces, True
    return [*pieces, out.finish()], False


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_text_comes_out_whole_and_never_in_half_characters(text) -> None:
    pieces, _ = stream("x" + text)
    assert "".join(pieces) == "x" + text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(
    st.text("ab€", max_size=12),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_answer_ends_before_the_first_stop_string(text, stops) -> None:
    pieces, stopped = stream("x" + text, *stops)
    whole = "x" + text
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert stopped == bool(ends)
    shown = "".join(pieces)
    if ends:
        # The stop string that is complete first counts.
        complete = min(
            (whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole
        )[0]
        earliest = min(
            whole.find(stop) for stop in stops if whole.find(stop) >= 0 and stop in whole[:complete]
        )
        assert shown == whole[:earliest]
    else:
        assert shown == whole


def test_leading_white_space_is_dropped_once() -> None:
    assert stream("  \n a b ")[0][-1] == ""
    assert "".join(stream("  \n a b ")[0]) == "a b "
