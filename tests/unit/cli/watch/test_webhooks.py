from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Receiver

from raylens.cli.watch import webhooks
from raylens.cli.watch.webhooks import MAX_WAITING, WebhookSender
from raylens.net.address import AllowList

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
URL = "http://example.com/hook"
STARTED = {"type": "started", "subject": "cup", "time_s": 1.5, "frame_id": 3}
ENDED = {**STARTED, "type": "ended", "ended_at": 2.5}


@dataclass
class Endpoint:
    """Answers with the given statuses, then with 200."""

    answers: list[int | Exception] = field(default_factory=list)
    posts: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    retry_after: str | None = None

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response:
        self.posts.append((url, content, headers))
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(
            answer, headers={"Retry-After": self.retry_after} if self.retry_after else {}
        )


@dataclass
class Waits:
    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def sender(
    endpoint: Endpoint, waits: Waits, notify: Callable[[str], None] = lambda message: None
) -> WebhookSender:
    return WebhookSender(URL, SECRET, endpoint, notify, sleep=waits)


async def test_events_are_signed_and_come_in_order() -> None:
    endpoint = Endpoint()
    async with sender(endpoint, Waits()) as webhook:
        webhook.send(STARTED, {"source": "camera"})
        webhook.send(ENDED, {"source": "camera"})
        await webhook.finish(5)
    assert webhook.undelivered == 0
    bodies = []
    for url, content, headers in endpoint.posts:
        assert url == URL
        bodies.append(Receiver(SECRET).verify(content, headers))
    assert [body["type"] for body in bodies] == ["watch.event.started", "watch.event.ended"]
    assert bodies[0]["data"] == {"source": "camera", "event": STARTED}
    assert len({headers["webhook-id"] for _, _, headers in endpoint.posts}) == 2


async def test_failures_are_tried_again_with_the_same_id() -> None:
    endpoint = Endpoint([500, httpx.ConnectError("refused"), 429])
    waits, notes = Waits(), list[str]()
    async with sender(endpoint, waits, notes.append) as webhook:
        webhook.send(STARTED, {})
        webhook.send(ENDED, {})
        await webhook.finish(5)
    kinds = [json.loads(content)["type"] for _, content, _ in endpoint.posts]
    assert kinds == ["watch.event.started"] * 4 + ["watch.event.ended"]
    assert len({headers["webhook-id"] for _, _, headers in endpoint.posts[:4]}) == 1
    assert waits.seconds == [1, 2, 5]  # 429 asks for 5 s
    assert notes == ["--webhook: the endpoint answered 500; trying again"]


async def test_retry_after_is_obeyed() -> None:
    endpoint, waits = Endpoint([503], retry_after="30"), Waits()
    async with sender(endpoint, waits) as webhook:
        webhook.send(STARTED, {})
        await webhook.finish(5)
    assert waits.seconds == [30]


async def test_an_endpoint_that_is_gone_gets_no_more() -> None:
    endpoint = Endpoint([410])
    async with sender(endpoint, Waits()) as webhook:
        for _ in range(3):
            webhook.send(STARTED, {})
        await webhook.finish(5)
        webhook.send(ENDED, {})
    assert len(endpoint.posts) == 1
    assert webhook.undelivered == 4


async def test_the_end_waits_only_for_a_while() -> None:
    class Silent(Endpoint):
        async def post(self, *arguments: Any) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    async with sender(Silent(), Waits()) as webhook:
        webhook.send(STARTED, {})
        webhook.send(ENDED, {})
        await webhook.finish(0.05)
    assert webhook.undelivered == 2
    assert len(asyncio.all_tasks()) == 1


async def test_waiting_events_are_bounded() -> None:
    async with sender(Endpoint(), Waits()) as webhook:
        for _ in range(MAX_WAITING + 7):
            webhook.send(STARTED, {})
        assert webhook.undelivered == 7


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "8.8.8.8", "fe80::1"])
async def test_ones_own_network_may_be_called(address: str) -> None:
    assert AllowList.parse(webhooks.ANYWHERE).allows(address, ip_address(address))
