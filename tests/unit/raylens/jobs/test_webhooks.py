from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Receiver
from standardwebhooks.webhooks import WebhookVerificationError

from raylens.jobs.job import Job, JobState, Problem, Webhook
from raylens.jobs.webhooks import (
    MAX_BODY,
    SCHEDULE,
    Outcome,
    check_secret,
    delivery,
    headers,
    judge,
    next_attempt,
)

T = 1_700_000_000.0


def secret(length: int = 32) -> str:
    return "whsec_" + base64.b64encode(os.urandom(length)).decode()


def job(**more: Any) -> Job:
    given: dict[str, Any] = {
        "id": "j",
        "type": "caption",
        "input": {},
        "created_at": T,
        "deadline": T + 100,
        "max_attempts": 3,
        "rank": T,
        "state": JobState.SUCCEEDED,
        "output": {"caption": "a red circle – 🔴"},
        "webhook": Webhook("https://example.com/hook"),
        **more,
    }
    return Job(**given)


class TestBodies:
    def test_it_is_type_timestamp_and_data(self) -> None:
        made = delivery(job(attempts=2, started_at=T, finished_at=T + 1.5), T + 2, "https://x/j")
        assert made is not None
        assert made.event == "job.succeeded"
        assert json.loads(made.body) == {
            "type": "job.succeeded",
            "timestamp": "2023-11-14T22:13:22.000+00:00",
            "data": {
                "job_id": "j",
                "job_type": "caption",
                "status": "succeeded",
                "attempts": 2,
                "created_at": "2023-11-14T22:13:20.000+00:00",
                "started_at": "2023-11-14T22:13:20.000+00:00",
                "finished_at": "2023-11-14T22:13:21.500+00:00",
                "error": None,
                "output": {"caption": "a red circle – 🔴"},
            },
        }

    def test_a_failure_says_why(self) -> None:
        failed = job(
            state=JobState.FAILED,
            output=None,
            problem=Problem("unsupported_media", "image: broken", "image"),
        )
        made = delivery(failed, T, "")
        assert made is not None
        assert made.event == "job.failed"
        assert json.loads(made.body)["data"]["error"] == {
            "code": "unsupported_media",
            "message": "image: broken",
            "field": "image",
        }

    @pytest.mark.parametrize("size", [MAX_BODY - 500, MAX_BODY, 10 * MAX_BODY])
    def test_a_large_result_stays_where_it_is(self, size: int) -> None:
        made = delivery(job(output={"caption": "é" * (size // 6)}), T, "https://x/api/v1/jobs/j")
        assert made is not None
        assert len(made.body.encode()) < MAX_BODY
        data = json.loads(made.body)["data"]
        assert (data["output"] is None) == (data.get("result_url") == "https://x/api/v1/jobs/j")
        assert (data["output"] is None) == (size >= MAX_BODY)

    def test_waiting_jobs_and_those_without_a_webhook_tell_nothing(self) -> None:
        assert delivery(job(state=JobState.QUEUED), T, "") is None
        assert delivery(job(webhook=None), T, "") is None


class TestSignatures:
    def test_an_independent_receiver_verifies_it(self) -> None:
        import time

        key = secret()
        made = delivery(job(), T, "")
        assert made is not None
        signed = headers(made, [key], time.time())
        assert Receiver(key).verify(made.body, signed)["type"] == "job.succeeded"
        with pytest.raises(WebhookVerificationError):
            Receiver(secret()).verify(made.body, signed)
        with pytest.raises(WebhookVerificationError):
            Receiver(key).verify(made.body.replace("red", "raw"), signed)

    def test_during_a_rotation_both_secrets_verify(self) -> None:
        import time

        old, new = secret(24), secret(64)
        made = delivery(job(), T, "")
        assert made is not None
        signed = headers(made, [new, old], time.time())
        for key in (old, new):
            assert Receiver(key).verify(made.body, signed)

    def test_the_id_is_the_same_in_every_attempt_and_the_timestamp_is_not(self) -> None:
        made = delivery(job(), T, "")
        assert made is not None
        first, later = headers(made, [], T), headers(replace(made, attempts=3), [], T + 60)
        assert first["webhook-id"] == later["webhook-id"] == made.id
        assert (first["webhook-timestamp"], later["webhook-timestamp"]) == (
            "1700000000",
            "1700000060",
        )
        assert "webhook-signature" not in first

    @pytest.mark.parametrize(
        "wrong",
        [
            "",
            "whsec_",
            "secret",
            "whsec_%%%",
            secret(23),
            secret(65),
            secret().removeprefix("whsec_"),
            "whsec_é",
        ],
    )
    def test_a_secret_that_is_none_is_refused(self, wrong: str) -> None:
        with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64"):
            check_secret(wrong)


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "outcome"),
        [
            *((status, Outcome.DELIVERED) for status in (200, 201, 204, 299)),
            *(
                (status, Outcome.RETRY)
                for status in (100, 301, 302, 307, 400, 404, 429, 500, 502, 503, 504)
            ),
            (410, Outcome.GONE),
        ],
    )
    def test_what_a_status_means(self, status: int, outcome: Outcome) -> None:
        assert judge(status, None, T).outcome is outcome

    @pytest.mark.parametrize("status", [429, 502, 504])
    def test_some_slow_everything_down(self, status: int) -> None:
        assert judge(status, None, T).slow_s == SCHEDULE[0]

    def test_retry_after_is_honoured_as_seconds_and_as_a_date(self) -> None:
        assert judge(503, "120", T).retry_after_s == 120
        assert judge(429, formatdate(T + 90, usegmt=True), T).retry_after_s == pytest.approx(
            90, abs=1
        )
        assert judge(503, formatdate(T - 90, usegmt=True), T).retry_after_s == 0
        assert judge(503, "9" * 9, T).retry_after_s == 86_400
        assert judge(500, "soon", T).retry_after_s is None
        assert judge(500, "-5", T).retry_after_s is None
        for odd in (
            "1 Jan 99999999999999999999 00:00:00 GMT",
            "1 Jan 2030 00:00:00 +99999999999999",
            "\x00",
            "",
        ):
            assert judge(500, odd, T).retry_after_s is None

    def test_the_schedule_has_ten_attempts_and_jitter(self) -> None:
        for attempt, wait in enumerate(SCHEDULE, 1):
            waits = [next_attempt(attempt, None) or 0.0 for _ in range(50)]
            assert all(wait <= actual <= wait * 1.1 for actual in waits)
            assert len(set(waits)) > 1
        assert next_attempt(len(SCHEDULE) + 1, None) is None
        assert next_attempt(1, 60) == 60
