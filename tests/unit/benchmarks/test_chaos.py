"""What the benchmark of kills counts as a failure."""

from __future__ import annotations

import json

import httpx
import pytest

from benchmarks.chaos.jobs import Endings, Jobs
from benchmarks.chaos.load import Outcome, Proxies, judge, judge_stream

ANSWER = json.dumps({"choices": [{"message": {"content": "a cat"}}]}).encode()
ERROR = json.dumps({"error": {"message": "no replica answers"}}).encode()
RETRY = httpx.Headers({"Retry-After": "1"})
EVENT = 'data: {"choices": []}\n\n'


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (200, {}, ANSWER, Outcome.ANSWERED),
        (503, RETRY, ERROR, Outcome.REFUSED),
        (503, {}, ERROR, Outcome.FAILED),
        (503, RETRY, b"Service Unavailable", Outcome.FAILED),
        (503, RETRY, b'{"detail": "another dialect"}', Outcome.FAILED),
        (500, RETRY, ERROR, Outcome.FAILED),
        (500, {}, b"Internal Server Error", Outcome.FAILED),
        (504, {}, ERROR, Outcome.FAILED),
    ],
)
def test_only_an_answer_and_a_clear_503_count_as_such(
    status: int, headers: dict[str, str], body: bytes, expected: Outcome
) -> None:
    assert judge(status, httpx.Headers(headers), body)[0] is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{EVENT}data: [DONE]\n\n", Outcome.ANSWERED),
        (f"{EVENT}data: {ERROR.decode()}\n\n", Outcome.CUT),
        (f"{EVENT}data: {ERROR.decode()}\n\ndata: [DONE]\n\n", Outcome.CUT),
        (EVENT, Outcome.BROKEN),
        ("", Outcome.BROKEN),
    ],
)
def test_a_stream_must_end_with_done_or_an_error_event(text: str, expected: Outcome) -> None:
    assert judge_stream(text)[0] is expected


async def test_a_job_must_succeed_and_end_once() -> None:
    jobs = Jobs(Proxies(lambda: [1]), endings := Endings())
    jobs.accepted = {"a": 0, "b": 1, "c": 2, "lost": 3}
    once = {("1", "job.succeeded")}
    endings.events |= {"a": once, "b": once, "c": {*once, ("2", "job.succeeded")}}
    listed = [
        {"id": "a", "status": "succeeded"},
        {"id": "b", "status": "failed", "error": "why"},
        {"id": "c", "status": "succeeded"},
    ]
    assert jobs.find_faults(listed) == ["lost: lost", "b: failed (why)", "c: ended 2 times"]
    jobs.tries[Outcome.FAILED] += 1
    assert "1 submissions failed" in jobs.find_faults(listed)
    await jobs.close()


def test_each_connection_goes_to_the_next_proxy() -> None:
    proxies = Proxies(lambda: [1, 2, 3])
    assert [proxies.in_turn() for _ in range(4)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
