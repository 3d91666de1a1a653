"""Sends webhook deliveries from the store when they are due.

A slow endpoint delays only its own deliveries.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
from raylens.jobs.webhooks import (
    DeliveryResult,
    Outcome,
    classify_response,
    make_headers,
    next_delay,
)
from raylens.net.client import describe_failure

logger = logging.getLogger(__name__)

LEASE_FACTOR = 4
"""A delivery's lease lasts this many request timeouts.

It covers the wait for other deliveries to the same host, and then the request itself.
"""


class WebhookClient(Protocol):
    """The HTTP client that posts webhooks.

    It is a :class:`raylens.net.client.GuardedClient`, or a fake in tests.
    """

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response:
        """Post ``content``, and return the response.

        ``field`` is the request field that an error names. Raises ``InvalidRequest`` if the URL is
        not allowed, and ``OSError`` or ``httpx.HTTPError`` if there is no response.
        """
        ...


class WebhookDispatcher:
    """Sends at most ``max_at_once`` deliveries at a time, and at most ``max_per_host`` to one host.

    ``clock`` is the store's clock.
    """

    def __init__(
        self,
        store: JobStore,
        webhook_client: WebhookClient,
        secrets: Sequence[str],
        config: WebhooksConfig,
        clock: Callable[[], float],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._webhook_client = webhook_client
        self._secrets = secrets
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._poll_loop = PollLoop(self._claim, self._find_next_due, "deliveries")
        self._tasks: set[asyncio.Task[None]] = set()
        self._claimed_by_host: Counter[str] = Counter()
        self._host_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.max_per_host)
        )

    def wake(self) -> None:
        """Look for due deliveries soon."""
        self._poll_loop.wake()

    async def serve(self) -> None:
        """Send deliveries until canceled.

        On cancellation, the unfinished deliveries are canceled too. Their leases are not released;
        they expire, and the deliveries are sent again.
        """
        try:
            await self._poll_loop.serve()
        finally:
            for task in self._tasks:
                task.cancel()

    async def _claim(self) -> bool:
        """Claim due deliveries up to the limits. Return whether to claim again at once."""
        free = self._config.max_at_once - len(self._tasks)
        if free <= 0:
            return False
        per_host = self._config.max_per_host
        busy_hosts = self._busy_hosts
        now = self._clock()
        lease_until = now + LEASE_FACTOR * self._config.timeout_s
        claimed = await self._store.claim_deliveries(free, per_host, now, lease_until, busy_hosts)
        for delivery in claimed:
            self._claimed_by_host[delivery.host] += 1
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_done, delivery.host))
        return bool(claimed)

    @property
    def _busy_hosts(self) -> list[str]:
        limit = self._config.max_per_host
        return [host for host, count in self._claimed_by_host.items() if count >= limit]

    async def _find_next_due(self) -> float:
        """Return the seconds until a delivery is due."""
        if len(self._tasks) >= self._config.max_at_once:
            return math.inf
        return await self._store.next_delivery_due(self._busy_hosts) - self._clock()

    def _on_done(self, host: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._claimed_by_host[host] -= 1
        if self._claimed_by_host[host] <= 0:
            del self._claimed_by_host[host]
            self._host_slots.pop(host, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "a delivery to %s crashed; it is sent again when its lease expires",
                host,
                exc_info=error,
            )
        self.wake()

    async def _deliver(self, delivery: Delivery) -> None:
        async with self._host_slots[delivery.host]:
            started = time.monotonic()
            result = await self._send(delivery)
        self._metrics.record_delivery(result.outcome.value, time.monotonic() - started)
        if result.problem:
            logger.info("delivery %s of job %s: %s", delivery.id, delivery.job_id, result.problem)
        now = self._clock()
        pause_until = None if result.pause_s is None else now + result.pause_s
        await self._store.settle_delivery(
            _after_attempt(delivery, result, now), pause_until, result.outcome is Outcome.GONE
        )

    async def _send(self, delivery: Delivery) -> DeliveryResult:
        """Make one delivery attempt."""
        webhook = delivery.webhook
        secrets = [webhook.secret] if webhook.secret is not None else self._secrets
        # Endpoints compare the timestamp with real time, so use this machine's clock.
        headers = make_headers(delivery, secrets, time.time())
        body = delivery.body.encode()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._webhook_client.post(
                    webhook.url, body, headers, "webhook_url"
                )
        except InvalidRequest as error:
            return DeliveryResult(Outcome.BLOCKED, problem=error.message)
        except TimeoutError:
            problem = f"no answer within {self._config.timeout_s:g} s"
            return DeliveryResult(Outcome.RETRY, problem=problem)
        except (OSError, httpx.HTTPError) as error:
            return DeliveryResult(Outcome.RETRY, problem=describe_failure(error))
        except Exception as error:
            # Any error must count as an attempt. Otherwise the delivery would be retried forever.
            logger.exception("delivery %s: internal error", delivery.id)
            return DeliveryResult(Outcome.RETRY, problem=type(error).__name__)
        retry_after = response.headers.get("retry-after")
        return classify_response(response.status_code, retry_after, time.time())


def _after_attempt(delivery: Delivery, result: DeliveryResult, now: float) -> Delivery:
    """Return a delivery as it is after an attempt."""
    attempts = delivery.attempts + 1
    attempted = replace(delivery, attempts=attempts, status=result.status, problem=result.problem)
    match result.outcome:
        case Outcome.DELIVERED:
            return replace(attempted, state=DeliveryState.DELIVERED, delivered_at=now)
        case Outcome.GONE:
            return replace(attempted, state=DeliveryState.DISABLED)
        case Outcome.BLOCKED:
            return replace(attempted, state=DeliveryState.FAILED)
        case Outcome.RETRY:
            delay = next_delay(attempts, result.retry_after_s)
            if delay is None:
                return replace(attempted, state=DeliveryState.FAILED)
            return replace(attempted, next_at=now + delay)
