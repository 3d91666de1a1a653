from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.core.hysteresis import Hysteresis, Transition
from raylens.core.verdict import Verdict

VERDICTS = {"y": True, "n": False, "?": None}
_ANY_VERDICTS = st.lists(st.sampled_from([True, False, None]), max_size=60)


def feed(text: str, enter: int = 2, leave: int = 2) -> list[list[Transition[int]]]:
    """Return the transitions at each frame, one a second, and at the end."""
    hysteresis = Hysteresis[int](enter, leave)
    found = [
        hysteresis.add(float(number), VERDICTS[letter], number)
        for number, letter in enumerate(text)
    ]
    return [*found, hysteresis.finish()]


def find_ranges(verdicts: list[Verdict], enter: int, leave: int) -> list[tuple[int, int]]:
    """Return half-open ranges of frames, by looking at the whole sequence at once.

    The definition, spelled out: a boundary is the first of ``enter`` or ``leave`` clear frames in a
    row that all differ from the state before.
    """
    clear = [number for number, verdict in enumerate(verdicts) if verdict is not None]
    bounds: list[int] = []
    position = 0
    while position < len(clear):
        is_on = len(bounds) % 2 == 1
        run = clear[position : position + (leave if is_on else min(enter, len(verdicts)))]
        is_long = len(run) == (leave if is_on else min(enter, len(verdicts)))
        if is_long and all(verdicts[number] is not is_on for number in run):
            bounds.append(run[0])
            position += len(run)
        else:
            position += 1
    if len(bounds) % 2 == 1:
        bounds.append(len(verdicts))
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def test_a_transition_comes_with_the_frame_that_decides_it() -> None:
    found = feed("nnyynn")
    assert [len(transitions) for transitions in found] == [0, 0, 0, 1, 0, 1, 0]
    assert found[3] == [Transition(True, 1.5, 2)]
    assert found[5] == [Transition(False, 3.5, 4)]


def test_the_end_of_the_sequence_ends_what_has_started() -> None:
    assert feed("nyyn")[-1] == [Transition(False, 3.0, 3)]
    assert feed("nyynn")[-1] == []
    hysteresis = Hysteresis[str](1, 1)
    hysteresis.add(0.0, True, "first")
    assert hysteresis.is_on
    assert hysteresis.finish(9.0) == [Transition(False, 9.0, "first")]
    assert not hysteresis.is_on


def test_a_short_sequence_has_its_start_at_its_end() -> None:
    assert feed("yy", enter=3)[-1] == [Transition(True, 0.0, 0), Transition(False, 1.0, 1)]
    assert feed("y?", enter=3)[-1] == []


def test_after_its_end_a_sequence_begins_anew() -> None:
    hysteresis = Hysteresis[int]()
    hysteresis.add(5.0, True, 0)
    assert hysteresis.finish() == [Transition(True, 5.0, 0), Transition(False, 5.0, 0)]
    assert hysteresis.add(1.0, True, 1) == []
    assert hysteresis.add(2.0, True, 2) == [Transition(True, 1.0, 1)]
    assert Hysteresis[int]().finish(3.0) == []


@given(_ANY_VERDICTS, st.integers(1, 5), st.integers(1, 5))
def test_deciding_frame_by_frame_equals_the_definition(verdicts, enter, leave) -> None:
    hysteresis = Hysteresis[int](enter, leave)
    found = [
        transition
        for number, verdict in enumerate(verdicts)
        for transition in hysteresis.add(float(number), verdict, number)
    ]
    found += hysteresis.finish()
    bounds = [bound for pair in find_ranges(verdicts, enter, leave) for bound in pair]
    last = len(verdicts) - 1
    expected = [
        0.0 if bound == 0 else float(last) if bound > last else bound - 0.5 for bound in bounds
    ]
    assert [transition.time for transition in found] == expected
    assert [transition.frame for transition in found] == [min(bound, last) for bound in bounds]
    assert [transition.is_start for transition in found] == [True, False] * (len(found) // 2)


@pytest.mark.parametrize(("enter", "leave"), [(0, 2), (2, 0), (-1, 1)])
def test_runs_of_no_frame_are_refused(enter, leave) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Hysteresis(enter, leave)
