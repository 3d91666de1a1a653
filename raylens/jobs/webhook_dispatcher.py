"""Delivers webhooks: rows of the store, sent when they are due. A slow endpoint holds up its own
deliveries only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import httpx

from raylens.core.config import WebhooksConfig
from raylens.core.errors import InvalidRequest
from raylens.jobs.job import Delivery, DeliveryState
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.poll_loop import PollLoop
from raylens.jobs.store import JobStore
from raylens.jobs.webhooks import Outcome, Verdict, headers, judge, next_attempt

logger = logging.getLogger(__name__)


class Sender(Protocol):
    """:class:`raylens.net.client.GuardedClient`, or a fake of it."""

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response: ...


class WebhookDispatcher:
    """Has at most ``max_at_once`` deliveries on the way, ``max_per_host`` of them to one host."""

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
        self._under_way: Counter[str] = Counter()
        self._room: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.max_per_host)
        )

    def wake(self) -> None:
        """Something may be due."""
        self._poll_loop.wake()

    async def serve(self) -> None:
        """Until it is canceled; what is under way is then sent again by whoever comes next."""
        try:
            await self._poll_loop.serve()
        finally:
            for task in self._tasks:
                task.cancel()

    async def _claim(self) -> bool:
        """Sends what is due, as far as there is room; whether there may be more."""
        free = self._config.max_at_once - len(self._tasks)
        if free <= 0:
            return False
        most = self._config.max_per_host
        now = self._clock()
        busy = [host for host, count in self._under_way.items() if count >= most]
        # Until its turn comes among those to the same host, and then its own time.
        until = now + 4 * self._config.timeout_s
        claimed = await self._store.claim_deliveries(free, most, now, until, busy)
        for delivery in claimed:
            self._under_way[delivery.host] += 1
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(lambda task, host=delivery.host: self._ended(task, host))  # type: ignore[misc]
        return bool(claimed)

    def _ended(self, task: asyncio.Task[None], host: str) -> None:
        self._tasks.discard(task)
        self._under_way[host] -= 1
        if self._under_way[host] <= 0:
            del self._under_way[host]
            self._room.pop(host, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery broke, and will be tried again", exc_info=error)
        self.wake()

    async def _deliver(self, delivery: Delivery) -> None:
        async with self._room[delivery.host]:
            started = time.monotonic()
            status, verdict, problem = await self._send(delivery)
        outcome = "refused" if verdict is None else verdict.outcome.value
        self._metrics.delivery(outcome, time.monotonic() - started)
        if problem:
            logger.info("webhook %s of job %s: %s", delivery.id, delivery.job_id, problem)
        now = self._clock()
        slow_until = (
            now + verdict.slow_s if verdict is not None and verdict.slow_s is not None else None
        )
        settled = _settled(
            replace(delivery, attempts=delivery.attempts + 1, status=status), verdict, problem, now
        )
        await self._store.settle_delivery(
            settled, slow_until, verdict is not None and verdict.outcome is Outcome.GONE
        )

    async def _send(self, delivery: Delivery) -> tuple[int | None, Verdict | None, str | None]:
        """One attempt: the status, what it means, and what went wrong. No verdict: it may not be
        sent at all."""
        webhook = delivery.webhook
        secrets = [webhook.secret] if webhook.secret is not None else self._secrets
        signed = headers(delivery, secrets, time.time())
        try:
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._sender.post(
                    webhook.url, delivery.body.encode(), signed, "webhook_url"
                )
        except InvalidRequest as error:
            return None, None, error.message
        except TimeoutError:
            return None, Verdict(Outcome.RETRY), f"no answer within {self._config.timeout_s:g} s"
        except (OSError, httpx.HTTPError) as error:
            return None, Verdict(Outcome.RETRY), f"{type(error).__name__}: {error}"[:500]
        except (
            Exception
        ) as error:  # whatever it is, the attempt counts: else it would be made again for ever
            logger.exception("webhook %s: unforeseen error", delivery.id)
            return None, Verdict(Outcome.RETRY), type(error).__name__
        status = response.status_code
        verdict = judge(status, response.headers.get("retry-after"), time.time())
        return (
            status,
            verdict,
            None if verdict.outcome is Outcome.DELIVERED else f"the endpoint answered {status}",
        )


def _settled(tried: Delivery, verdict: Verdict | None, problem: str | None, now: float) -> Delivery:
    """A delivery after an attempt."""
    if verdict is None:
        return replace(tried, state=DeliveryState.FAILED, problem=problem)
    if verdict.outcome is Outcome.DELIVERED:
        return replace(tried, state=DeliveryState.DELIVERED, delivered_at=now, problem=None)
    if verdict.outcome is Outcome.GONE:
        return replace(tried, state=DeliveryState.DISABLED, problem=problem)
    wait = next_attempt(tried.attempts, verdict.retry_after_s)
    if wait is None:
        return replace(tried, state=DeliveryState.FAILED, problem=problem)
    return replace(tried, next_at=now + wait, problem=problem)
