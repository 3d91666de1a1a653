from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Receiver
from standardwebhooks.webhooks import WebhookVerificationError

from raylens.jobs.job import Delivery, Job, JobState, Problem, Webhook
from raylens.jobs.webhooks import (
    MAX_BODY_BYTES,
    RETRY_DELAYS_S,
    Outcome,
    check_secret,
    classify_response,
    make_delivery,
    make_headers,
    next_delay,
)

NOW = 1_700_000_000.0


def make_secret(length: int = 32) -> str:
    return "whsec_" + base64.b64encode(os.urandom(length)).decode()


def make_job(**fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": "j",
        "type": "caption",
        "input": {},
        "created_at": NOW,
        "deadline": NOW + 100,
        "max_attempts": 3,
        "rank": NOW,
        "state": JobState.SUCCEEDED,
        "output": {"caption": "a red circle – 🔴"},
        "webhook": Webhook("https://example.com/hook"),
    }
    return Job(**{**defaults, **fields})


def delivery_of(job: Job, now: float = NOW, result_url: str = "") -> Delivery:
    delivery = make_delivery(job, now, result_url)
    assert delivery is not None
    return delivery


class TestBodies:
    def test_a_body_has_type_timestamp_and_data(self) -> None:
        job = make_job(attempts=2, started_at=NOW, finished_at=NOW + 1.5)
        delivery = delivery_of(job, NOW + 2, "https://x/j")
        assert delivery.event == "job.succeeded"
        assert json.loads(delivery.body) == {
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

    def test_a_failure_has_its_error(self) -> None:
        problem = Problem("unsupported_media", "image: broken", "image")
        delivery = delivery_of(make_job(state=JobState.FAILED, output=None, problem=problem))
        assert delivery.event == "job.failed"
        assert json.loads(delivery.body)["data"]["error"] == {
            "code": "unsupported_media",
            "message": "image: broken",
            "field": "image",
        }

    @pytest.mark.parametrize("size", [MAX_BODY_BYTES - 500, MAX_BODY_BYTES, 10 * MAX_BODY_BYTES])
    def test_a_large_output_is_replaced_by_a_link(self, size: int) -> None:
        job = make_job(output={"caption": "é" * (size // 6)})
        delivery = delivery_of(job, NOW, "https://x/api/v1/jobs/j")
        assert len(delivery.body.encode()) < MAX_BODY_BYTES
        data = json.loads(delivery.body)["data"]
        has_link = data.get("result_url") == "https://x/api/v1/jobs/j"
        assert (data["output"] is None) == has_link
        assert (data["output"] is None) == (size >= MAX_BODY_BYTES)

    def test_queued_jobs_and_jobs_without_a_webhook_have_no_delivery(self) -> None:
        assert make_delivery(make_job(state=JobState.QUEUED), NOW, "") is None
        assert make_delivery(make_job(webhook=None), NOW, "") is None


class TestSignatures:
    def test_an_independent_library_verifies_the_signature(self) -> None:
        secret = make_secret()
        delivery = delivery_of(make_job())
        headers = make_headers(delivery, [secret], time.time())
        assert Receiver(secret).verify(delivery.body, headers)["type"] == "job.succeeded"
        with pytest.raises(WebhookVerificationError):
            Receiver(make_secret()).verify(delivery.body, headers)
        with pytest.raises(WebhookVerificationError):
            Receiver(secret).verify(delivery.body.replace("red", "raw"), headers)

    def test_during_a_rotation_both_secrets_verify(self) -> None:
        old = make_secret(24)
        new = make_secret(64)
        delivery = delivery_of(make_job())
        headers = make_headers(delivery, [new, old], time.time())
        for secret in (old, new):
            assert Receiver(secret).verify(delivery.body, headers)

    def test_every_attempt_has_the_same_id_and_its_own_timestamp(self) -> None:
        delivery = delivery_of(make_job())
        first = make_headers(delivery, [], NOW)
        later = make_headers(replace(delivery, attempts=3), [], NOW + 60)
        assert first["webhook-id"] == later["webhook-id"] == delivery.id
        assert first["webhook-timestamp"] == "1700000000"
        assert later["webhook-timestamp"] == "1700000060"
        assert "webhook-signature" not in first

    @pytest.mark.parametrize(
        "secret",
        [
            "",
            "whsec_",
            "secret",
            "whsec_%%%",
            make_secret(23),
            make_secret(65),
            make_secret().removeprefix("whsec_"),
            "whsec_é",
        ],
    )
    def test_an_invalid_secret_is_refused(self, secret: str) -> None:
        with pytest.raises(ValueError, match="whsec_ followed by the base64 encoding of 24 to 64"):
            check_secret(secret)


class TestResponses:
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
    def test_the_status_decides_the_outcome(self, status: int, outcome: Outcome) -> None:
        assert classify_response(status, None, NOW).outcome is outcome

    @pytest.mark.parametrize("status", [429, 502, 504])
    def test_an_overloaded_endpoint_pauses_all_deliveries_to_it(self, status: int) -> None:
        assert classify_response(status, None, NOW).pause_s == RETRY_DELAYS_S[0]

    def test_retry_after_is_honored_as_seconds_and_as_a_date(self) -> None:
        in_90_s = formatdate(NOW + 90, usegmt=True)
        in_the_past = formatdate(NOW - 90, usegmt=True)
        assert classify_response(503, "120", NOW).retry_after_s == 120
        assert classify_response(429, in_90_s, NOW).retry_after_s == pytest.approx(90, abs=1)
        assert classify_response(503, in_the_past, NOW).retry_after_s == 0
        assert classify_response(503, "9" * 9, NOW).retry_after_s == 86_400
        assert classify_response(500, "soon", NOW).retry_after_s is None
        assert classify_response(500, "-5", NOW).retry_after_s is None
        for malformed in (
            "1 Jan 99999999999999999999 00:00:00 GMT",
            "1 Jan 2030 00:00:00 +99999999999999",
            "\x00",
            "",
        ):
            assert classify_response(500, malformed, NOW).retry_after_s is None

    def test_the_schedule_has_ten_attempts_and_jitter(self) -> None:
        for attempt, scheduled in enumerate(RETRY_DELAYS_S, 1):
            delays = [next_delay(attempt, None) or 0.0 for _ in range(50)]
            assert all(scheduled <= delay <= scheduled * 1.1 for delay in delays)
            assert len(set(delays)) > 1
        assert next_delay(len(RETRY_DELAYS_S) + 1, None) is None
        assert next_delay(1, 60) == 60
