from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from raylens.core.errors import InvalidRequest, Overloaded, TooManyRequests
from raylens.jobs.job import DeliveryState, Webhook
from raylens.jobs.webhooks import format_timestamp
from raylens.net.address import AddressRefused
from tests.unit.raylens.jobs.conftest import (
    URL,
    FakeWebhookClient,
    QueueParts,
    make_job,
    make_job_with_webhook,
    now,
    serving,
    wait_until,
    wait_until_ended,
)


async def test_the_end_is_delivered_once_with_the_output(parts: QueueParts) -> None:
    queue = parts.make_queue()
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(100)
        (delivery,) = await queue.deliveries(job.id)
    ((url, content, headers),) = parts.webhook_client.sent
    assert url == URL
    body = json.loads(content)
    assert body["type"] == "job.succeeded"
    assert body["data"]["output"]["answer"] == "two circles"
    assert headers["webhook-id"] == delivery.id
    assert delivery.state is DeliveryState.DELIVERED
    assert (delivery.status, delivery.attempts) == (204, 1)


async def test_the_start_if_enabled_and_a_cancellation_are_delivered(parts: QueueParts) -> None:
    parts.service.seconds = 300
    queue = parts.make_queue(webhooks={"started": True})
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await wait_until(lambda: parts.service.running)
        await queue.cancel(job.id)
        await wait_until(lambda: len(parts.webhook_client.sent) == 2)
    events = {json.loads(content)["type"] for _, content, _ in parts.webhook_client.sent}
    assert events == {"job.started", "job.canceled"}


async def test_the_start_is_delivered_once_and_again_after_a_requeue(parts: QueueParts) -> None:
    parts.service.errors = [Overloaded("full", "model")] * 5 + [InvalidRequest("broken")]
    queue = parts.make_queue(webhooks={"started": True})
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await wait_until_ended(queue, job.id)
        await queue.requeue(job.id)
        await wait_until_ended(queue, job.id)
        events = [delivery.event for delivery in await queue.deliveries(job.id)]
    assert events == ["job.started", "job.failed", "job.started", "job.succeeded"]


async def test_what_an_endpoint_reads_is_on_the_wall_clock(parts: QueueParts) -> None:
    queue = parts.make_queue()
    async with serving(queue):
        parts.clock.step = 7200.0
        job = await queue.submit(make_job_with_webhook(), {})
        ended = await wait_until_ended(queue, job.id)
        await wait_until(lambda: parts.webhook_client.sent)
        await asyncio.sleep(1)
        (delivery,) = await queue.deliveries(job.id)
    ((_, content, _),) = parts.webhook_client.sent
    body = json.loads(content)
    assert body["timestamp"] == body["data"]["finished_at"] == format_timestamp(ended.finished_at)
    assert delivery.created_at == pytest.approx(now() + 7200, abs=3)
    assert delivery.delivered_at == pytest.approx(now() + 7200, abs=3)


async def test_a_failed_delivery_is_retried_on_the_schedule(parts: QueueParts) -> None:
    parts.webhook_client = FakeWebhookClient([503] * 20)
    queue = parts.make_queue()
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(1.15 * (5 + 300 + 1800))
        (delivery,) = await queue.deliveries(job.id)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 4)
    assert (delivery.status, delivery.problem) == (503, "the endpoint answered 503")


async def test_a_longer_retry_after_is_honored(parts: QueueParts) -> None:
    parts.webhook_client = FakeWebhookClient([503, 204], {"retry-after": "1000"})
    queue = parts.make_queue()
    async with serving(queue):
        await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(999)
        assert len(parts.webhook_client.sent) == 1
        await asyncio.sleep(2)
    ids = {headers["webhook-id"] for _, _, headers in parts.webhook_client.sent}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("status", "state", "problem"),
    [
        (410, DeliveryState.DISABLED, "the endpoint answered 410"),
        (302, DeliveryState.PENDING, "the endpoint answered 302"),
        (
            AddressRefused("webhook_url: x leads to an address that is not public", "webhook_url"),
            DeliveryState.FAILED,
            "webhook_url: x leads to an address that is not public",
        ),
        (httpx.ConnectError("10.0.0.5 refused"), DeliveryState.PENDING, "ConnectError"),
        (OSError(113, "Connect call failed ('10.0.0.5', 443)"), DeliveryState.PENDING, "no route"),
        (ZeroDivisionError("a bug"), DeliveryState.PENDING, "ZeroDivisionError"),
    ],
)
async def test_the_result_of_an_attempt_is_stored(
    parts: QueueParts, status: int | Exception, state: DeliveryState, problem: str
) -> None:
    parts.webhook_client = FakeWebhookClient([status])
    queue = parts.make_queue()
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(1)
        (delivery,) = await queue.deliveries(job.id)
    assert (delivery.state, delivery.attempts) == (state, 1)
    assert (delivery.problem or "").startswith(problem)
    assert "10.0.0.5" not in (delivery.problem or "")
    if state is DeliveryState.PENDING:
        assert delivery.next_at > now() + 3


async def test_a_slow_response_is_a_failed_attempt(parts: QueueParts) -> None:
    parts.webhook_client = FakeWebhookClient(seconds=3000)
    queue = parts.make_queue()
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(16)
        (delivery,) = await queue.deliveries(job.id)
    assert delivery.problem == "no answer within 15 s"


async def test_a_dead_receiver_delays_neither_jobs_nor_other_webhooks(parts: QueueParts) -> None:
    class HalfDeadClient(FakeWebhookClient):
        async def post(
            self, url: str, content: bytes, headers: dict[str, str], field: str
        ) -> httpx.Response:
            self.sent.append((url, content, headers))
            await asyncio.sleep(3000 if "dead" in url else 0)
            return httpx.Response(204)

    def count(host: str) -> int:
        return sum(host in url for url, _, _ in parts.webhook_client.sent)

    parts.webhook_client = HalfDeadClient()
    queue = parts.make_queue()
    dead = Webhook("https://dead.example/")
    alive = Webhook("https://alive.example/")
    started = now()
    async with serving(queue):
        jobs = [await queue.submit(make_job(webhook=dead), {}) for _ in range(20)]
        jobs += [await queue.submit(make_job(webhook=alive), {}) for _ in range(20)]
        for job in jobs:
            await wait_until_ended(queue, job.id)
        await wait_until(lambda: count("alive") == 20)
    assert now() - started < 10
    assert count("dead") == 4


async def test_an_interrupted_delivery_is_sent_again_after_a_restart(parts: QueueParts) -> None:
    parts.webhook_client = FakeWebhookClient(seconds=10)
    dead_queue = parts.make_queue()
    async with serving(dead_queue):
        job = await dead_queue.submit(make_job_with_webhook(), {})
        await wait_until(lambda: parts.webhook_client.sent)
    parts.webhook_client = FakeWebhookClient()
    queue = parts.make_queue()
    async with serving(queue):
        await wait_until(lambda: parts.webhook_client.sent)
        await asyncio.sleep(1)
        (delivery,) = await queue.deliveries(job.id)
    assert delivery.state is DeliveryState.DELIVERED


async def test_the_redeliveries_of_a_job_are_limited(parts: QueueParts) -> None:
    queue = parts.make_queue()
    async with serving(queue):
        job = await queue.submit(make_job_with_webhook(), {})
        other = await queue.submit(make_job_with_webhook(), {})
        await asyncio.sleep(1)
        for _ in range(10):
            await queue.redeliver(job.id, 1)
            await asyncio.sleep(1)
        with pytest.raises(TooManyRequests, match="the limit is 10 in 60 s") as caught:
            await queue.redeliver(job.id, 1)
        assert caught.value.retry_after == pytest.approx(50)
        await queue.redeliver(other.id, 1)
        await asyncio.sleep(50)
        await queue.redeliver(job.id, 1)
