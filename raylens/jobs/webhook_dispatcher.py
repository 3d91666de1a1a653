"""Sends webhook deliveries from the store when they are due.

A slow endpoint delays only its own deliveries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import httpx

from raylens.core.config import WebhooksConfig
from raylens.core.errors import InvalidRequest
from raylens.jobs.job import Delivery, DeliveryState
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.poll_loop import PollLoop
from raylens.jobs.store import JobStore
from raylens.jobs.webhooks import AttemptResult, Outcome, classify, make_headers, next_delay

logger = logging.getLogger(__name__)

LEASE_TIMEOUTS = 4
"""Length of a delivery's lease, in request time-outs.

The lease covers the wait for other deliveries to the same host, and then the request itself.
"""
MAX_PROBLEM_CHARS = 500


class Sender(Protocol):
    """The HTTP client: :class:`raylens.net.client.GuardedClient`, or a fake."""

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response: ...


class WebhookDispatcher:
    """Sends at most ``max_at_once`` deliveries at a time, ``max_per_host`` of them to one host."""

    def __init__(
        self,
        store: JobStore,
        sender: Sender,
        secrets: Sequence[str],
        config: WebhooksConfig,
        clock: Callable[[], float],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._sender = sender
        self._secrets = secrets
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._poll_loop = PollLoop(self._claim, "deliveries")
        self._tasks: set[asyncio.Task[None]] = set()
        self._claimed_by_host: Counter[str] = Counter()
        self._host_limits: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.max_per_host)
        )

    def wake(self) -> None:
        """Look for due deliveries soon."""
        self._poll_loop.wake()

    async def serve(self) -> None:
        """Send deliveries until canceled.

        Then the unfinished ones stop. They are sent again once their leases have expired.
        """
        try:
            await self._poll_loop.serve()
        finally:
            for task in self._tasks:
                task.cancel()

    async def _claim(self) -> bool:
        """Claim as many due deliveries as the limits allow. Return whether more may be due."""
        free = self._config.max_at_once - len(self._tasks)
        if free <= 0:
            return False
        per_host = self._config.max_per_host
        busy = [host for host, count in self._claimed_by_host.items() if count >= per_host]
        now = self._clock()
        lease_until = now + LEASE_TIMEOUTS * self._config.timeout_s
        claimed = await self._store.claim_deliveries(free, per_host, now, lease_until, busy)
        for delivery in claimed:
            self._claimed_by_host[delivery.host] += 1
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_done, delivery.host))
        return bool(claimed)

    def _on_done(self, host: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._claimed_by_host[host] -= 1
        if self._claimed_by_host[host] <= 0:
            del self._claimed_by_host[host]
            self._host_limits.pop(host, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery crashed and will be retried", exc_info=error)
        self.wake()

    async def _deliver(self, delivery: Delivery) -> None:
        async with self._host_limits[delivery.host]:
            started = time.monotonic()
            result = await self._send(delivery)
        self._metrics.record_delivery(result.outcome.value, time.monotonic() - started)
        if result.problem:
            logger.info("webhook %s of job %s: %s", delivery.id, delivery.job_id, result.problem)
        now = self._clock()
        pause_until = None if result.pause_s is None else now + result.pause_s
        await self._store.settle_delivery(
            _after_attempt(delivery, result, now), pause_until, result.outcome is Outcome.GONE
        )

    async def _send(self, delivery: Delivery) -> AttemptResult:
        """Make one attempt to deliver."""
        webhook = delivery.webhook
        secrets = [webhook.secret] if webhook.secret is not None else self._secrets
        headers = make_headers(delivery, secrets, time.time())
        body = delivery.body.encode()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._sender.post(webhook.url, body, headers, "webhook_url")
        except InvalidRequest as error:
            return AttemptResult(Outcome.REFUSED, problem=error.message)
        except TimeoutError:
            problem = f"no answer within {self._config.timeout_s:g} s"
            return AttemptResult(Outcome.RETRY, problem=problem)
        except (OSError, httpx.HTTPError) as error:
            problem = f"{type(error).__name__}: {error}"[:MAX_PROBLEM_CHARS]
            return AttemptResult(Outcome.RETRY, problem=problem)
        except Exception as error:
            # Any error must count as an attempt. Otherwise the delivery would be retried forever.
            logger.exception("webhook %s: internal error", delivery.id)
            return AttemptResult(Outcome.RETRY, problem=type(error).__name__)
        return classify(response.status_code, response.headers.get("retry-after"), time.time())


def _after_attempt(delivery: Delivery, result: AttemptResult, now: float) -> Delivery:
    """Return a delivery as it is after an attempt."""
    attempts = delivery.attempts + 1
    attempted = replace(delivery, attempts=attempts, status=result.status, problem=result.problem)
    match result.outcome:
        case Outcome.DELIVERED:
            return replace(attempted, state=DeliveryState.DELIVERED, delivered_at=now)
        case Outcome.GONE:
            return replace(attempted, state=DeliveryState.DISABLED)
        case Outcome.REFUSED:
            return replace(attempted, state=DeliveryState.FAILED)
        case Outcome.RETRY:
            delay = next_delay(attempts, result.retry_after_s)
            if delay is None:
                return replace(attempted, state=DeliveryState.FAILED)
            return replace(attempted, next_at=now + delay)
