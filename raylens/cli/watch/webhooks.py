"""Events as signed webhooks, from the machine that watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import httpx

from raylens.cli.errors import UsageError
from raylens.core.errors import InvalidRequest
from raylens.jobs.job import Delivery, Webhook
from raylens.jobs.webhook_dispatcher import WebhookClient
from raylens.jobs.webhooks import (
    DeliveryResult,
    Outcome,
    check_secret,
    classify_response,
    format_timestamp,
    make_headers,
)
from raylens.net.address import AllowList
from raylens.net.client import GuardedClient, describe_failure, parse_url

SECRET_VARIABLE = "RAYLENS_WEBHOOK_SECRET"
"""The environment variable with the secret. On the command line, other users could see it."""
OPTION = "--webhook"
MAX_WAITING = 1000
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
REQUEST_TIMEOUT_S = 10.0
ANYWHERE = ("0.0.0.0/0", "::/0")
"""Whoever runs the command may call what they like."""


def check_webhook(url: str, secret: str | None) -> None:
    """Raise ``UsageError`` if the URL or the secret is invalid."""
    try:
        parse_url(url, OPTION)
    except InvalidRequest as error:
        raise UsageError(error.message) from None
    try:
        if secret is not None:
            check_secret(secret)
    except ValueError as error:
        raise UsageError(f"{SECRET_VARIABLE}: {error}") from None


def make_client() -> GuardedClient:
    return GuardedClient(AllowList.parse(ANYWHERE), REQUEST_TIMEOUT_S, "raylens")


class WebhookSender:
    """Delivers events in order, and repeats each until the endpoint takes it.

    An endpoint that answers 410 gets no more. :meth:`finish` waits for the rest.
    """

    def __init__(
        self,
        url: str,
        secret: str | None,
        client: WebhookClient,
        notify: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._webhook = Webhook(url)
        self._secrets = [] if secret is None else [secret]
        self._client = client
        self._notify = notify
        self._clock = clock
        self._sleep = sleep
        self._waiting: deque[Delivery] = deque()
        self._has_changed = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._is_gone = False
        self._has_failed = False
        self._task: asyncio.Task[None] | None = None
        self.undelivered = 0
        """Number of events that were given up."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._deliver_all())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def send(self, event: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Deliver an event soon. It never blocks."""
        if self._is_gone or len(self._waiting) >= MAX_WAITING:
            self.undelivered += 1
            return
        now = self._clock()
        kind = f"watch.event.{event['type']}"
        body = {
            "type": kind,
            "timestamp": format_timestamp(now),
            "data": {**data, "event": dict(event)},
        }
        text = json.dumps(body, separators=(",", ":"))
        delivery_id = f"msg_{uuid.uuid4().hex}"
        self._waiting.append(Delivery(delivery_id, "", 0, kind, self._webhook, text, now, now))
        self._is_empty.clear()
        self._has_changed.set()

    async def finish(self, timeout_s: float) -> None:
        """Wait until everything is delivered, at most for ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        self.undelivered += len(self._waiting)
        self._waiting.clear()

    async def _deliver_all(self) -> None:
        while True:
            while not self._waiting:
                self._has_changed.clear()
                self._is_empty.set()
                await self._has_changed.wait()
            await self._deliver(self._waiting[0])
            if self._waiting:  # finish() may have given up
                self._waiting.popleft()

    async def _deliver(self, delivery: Delivery) -> None:
        wait_s = FIRST_RETRY_S
        while not self._is_gone:
            result = await self._attempt(delivery)
            if result.outcome is Outcome.DELIVERED:
                self._has_failed = False
                return
            if not self._has_failed:
                self._has_failed = True
                self._notify(f"{OPTION}: {result.problem}; trying again")
            if result.outcome in (Outcome.GONE, Outcome.BLOCKED):
                self._is_gone = True
                break
            await self._sleep(max(wait_s, result.retry_after_s or 0.0))
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)
        self.undelivered += 1

    async def _attempt(self, delivery: Delivery) -> DeliveryResult:
        now = self._clock()
        headers = make_headers(delivery, self._secrets, now)
        try:
            response = await self._client.post(
                delivery.webhook.url, delivery.body.encode(), headers, OPTION
            )
        except InvalidRequest as error:
            return DeliveryResult(Outcome.BLOCKED, problem=error.message)
        except (httpx.HTTPError, OSError) as error:
            return DeliveryResult(Outcome.RETRY, problem=describe_failure(error))
        return classify_response(response.status_code, response.headers.get("retry-after"), now)
