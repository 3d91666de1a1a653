"""The dialects of other servers: every request of docs/dialects.md gets the answer that is printed
there, field by field."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.serve.documented_requests import Example, read_examples

CHANGES = frozenset(
    {
        *("id", "job_id", "created", "created_at", "started_at", "finished_at", "deadline"),
        *("timestamp", "processing_time"),
        # Statistics of a queue that other tests use too, and memory.
        *("waiting", "running", "done", "failed", "canceled", "mean_seconds", "p95_seconds"),
        *("allocated_gb", "reserved_gb", "free_gb", "total_gb", "usage_percentage", "freed_gb"),
        *("message", "replicas"),
        # Answers about what the pocket models don't know, and models of the tests.
        *("people", "vehicles", "activities", "unusual", "models", "plugins", "total"),
    }
)
"""Fields whose values differ from run to run; their types don't."""
EXAMPLES = list(read_examples())
DONE = ("succeeded", "failed", "done", "error")
SECONDS = 60


def test_the_document_has_examples_of_every_dialect() -> None:
    names = {example.name for example in EXAMPLES}
    assert len(EXAMPLES) > 20
    assert names >= {
        "POST /caption",
        "POST /describe/file",
        "POST /surveillance",
        "POST /api/v1/generate",
        "POST /api/v1/jobs",
        "POST /v1/chat/completions",
        "GET /api/v1/pipelines/schemas",
    }


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """The ids of jobs that earlier examples have submitted."""
    return {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_printed_answer_is_the_answer(
    server: str, variables: dict[str, str], example: Example
) -> None:
    with httpx.Client(base_url=server, timeout=120) as client:
        answer = example.run(client, variables).json()
        end = time.monotonic() + SECONDS
        while "$" in example.name and answer["status"] not in DONE and time.monotonic() < end:
            time.sleep(0.1)
            answer = example.run(client, variables).json()
    variables |= {key: answer[key] for key in ("job_id", "id") if key in answer}
    assert find_difference(answer, example.answer) is None


def find_difference(answer: Any, printed: Any, path: str = "", is_fixed: bool = True) -> str | None:
    """Return where an answer differs from a printed one, or None."""
    if isinstance(answer, list) and isinstance(printed, list):
        answer, printed = dict(enumerate(answer)), dict(enumerate(printed))
    if isinstance(answer, dict) and isinstance(printed, dict):
        if is_fixed and answer.keys() != printed.keys():
            return f"{path}: {sorted(answer)}, printed {sorted(printed)}"
        common = answer.keys() & printed.keys()
        differences = (
            find_difference(
                answer[key], printed[key], f"{path}.{key}", is_fixed and key not in CHANGES
            )
            for key in common
        )
        return next(filter(None, differences), None)
    is_same = answer == printed if is_fixed else _kind(answer) is _kind(printed)
    return None if is_same else f"{path}: {answer!r}, printed {printed!r}"


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
