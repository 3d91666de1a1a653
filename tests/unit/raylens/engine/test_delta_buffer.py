"""Which deltas of an answer are sent together."""

from __future__ import annotations

import math

from raylens.core.types import (
    Delta,
    EngineTimings,
    FinishReason,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from raylens.engine.delta_buffer import DeltaBuffer


def send(
    deltas: list[tuple[float, Delta]], interval: float, buffer: DeltaBuffer | None = None
) -> list[tuple[float, Delta]]:
    """Push deltas at their times, and return what is sent at which time."""
    buffer = buffer or DeltaBuffer()
    sent = []
    for now, delta in deltas:
        output = buffer.push(delta, now, interval)
        if output is not None:
            sent.append((now, output))
    return sent


def words(*times: float) -> list[tuple[float, Delta]]:
    return [(now, Delta(f"{number} ")) for number, now in enumerate(times)]


def test_tokens_that_come_slowly_are_sent_one_by_one() -> None:
    deltas = words(5.0, 5.1, 5.2)
    assert send(deltas, 0.05) == deltas
    assert send(words(5.0, 5.0, 5.0), 0.0) == words(5.0, 5.0, 5.0)


def test_tokens_that_come_fast_are_sent_together_and_the_first_one_at_once() -> None:
    sent = send(words(5.0, 5.125, 5.25, 5.375, 5.5, 5.625), 0.25)
    texts = [(now, delta.text) for now, delta in sent]
    assert texts == [(5.0, "0 "), (5.25, "1 2 "), (5.5, "3 4 ")]


def test_streams_that_began_at_different_times_are_sent_at_the_same_times() -> None:
    first = send(words(*(5.0 + step / 16 for step in range(16))), 0.25)
    second = send(words(*(5.0 + step / 16 for step in range(3, 16))), 0.25)
    assert [now for now, _ in first] == [5.0, 5.25, 5.5, 5.75]
    assert [now for now, _ in second] == [5.1875, 5.25, 5.5, 5.75]


def test_the_end_is_sent_at_once_with_all_that_is_held() -> None:
    end = Delta("end", finish_reason=FinishReason.STOP, usage=Usage(7, 4))
    (_, first), (now, last) = send([*words(5.0, 5.01, 5.02), (5.03, end)], 0.25)
    assert (first.text, now) == ("0 ", 5.03)
    assert last == Delta("1 2 end", finish_reason=FinishReason.STOP, usage=Usage(7, 4))


def test_an_answer_that_is_not_streamed_is_one_delta() -> None:
    end = Delta("end", finish_reason=FinishReason.LENGTH)
    ((now, delta),) = send([*words(5.0, 6.0, 70.0), (71.0, end)], math.inf)
    assert (now, delta.text, delta.finish_reason) == (71.0, "0 1 2 end", FinishReason.LENGTH)


def test_a_token_without_text_is_held_with_its_timings_until_there_is_text() -> None:
    timings = EngineTimings(prefill=0.25)
    ((now, delta),) = send([(5.0, Delta(timings=timings)), (5.001, Delta("text"))], 0.1)
    assert (now, delta) == (5.001, Delta("text", timings=timings))


def test_logprobs_stay_in_order_and_the_pieces_of_a_call_are_joined() -> None:
    logprobs = [TokenLogprob(text, text.encode(), -1.0) for text in "abc"]
    pieces = [
        ToolCallDelta(0, "scene"),
        ToolCallDelta(0, None, '{"count":'),
        ToolCallDelta(0, None, " 3}"),
        ToolCallDelta(1, "next"),
    ]
    deltas = [
        (5.0, Delta("x")),
        (5.01, Delta(logprobs=(logprobs[0],), tool_calls=(pieces[0],), usage=Usage(1, 1))),
        (5.02, Delta(logprobs=(logprobs[1],), tool_calls=(pieces[1],))),
        (5.03, Delta(logprobs=(logprobs[2],), tool_calls=(pieces[2], pieces[3]))),
        (5.20, Delta("y", usage=Usage(1, 5), timings=Timings(queue=1.0))),
    ]
    _, (_, joined) = send(deltas, 0.125)
    assert joined == Delta(
        "y",
        usage=Usage(1, 5),
        logprobs=tuple(logprobs),
        tool_calls=(ToolCallDelta(0, "scene", '{"count": 3}'), ToolCallDelta(1, "next")),
        timings=Timings(queue=1.0),
    )
