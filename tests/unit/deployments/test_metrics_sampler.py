"""The metrics of nodes are read over HTTP, and a node that is away holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from deployments.metrics_sampler import PERIOD_S, WATCHED_PERIOD_S, MetricsSampler, node_addresses
from raylens.status.metrics import REQUESTS
from testing.virtual_time import VirtualTimePolicy

UP, DOWN, SLOW = "10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


class FakeNodes:
    """Nodes whose only counter grows by one with each reading."""

    def __init__(self) -> None:
        self.readings = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        address = f"{request.url.host}:{request.url.port}"
        if address == DOWN:
            raise httpx.ConnectError("refused")
        if address == SLOW:
            await asyncio.sleep(3600)
        self.readings += 1
        series = f'{REQUESTS}{{method="POST",model="small",status="200",application="app"}}'
        return httpx.Response(200, text=f"{series} {self.readings}\n")


@asynccontextmanager
async def sampling(
    nodes: FakeNodes, list_addresses: Callable[[], list[str]]
) -> AsyncIterator[MetricsSampler]:
    """Run a sampler whose nodes are ``nodes``, in the loop's time."""
    sampler = MetricsSampler("app", list_addresses, asyncio.get_running_loop().time)
    async with httpx.AsyncClient(transport=httpx.MockTransport(nodes)) as client:
        task = asyncio.create_task(sampler.run(client))
        yield sampler
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_node_that_is_away_or_slow_is_told_and_the_others_are_read() -> None:
    async with sampling(FakeNodes(), lambda: [UP, DOWN, SLOW]) as sampler:
        await asyncio.sleep(2.5 * PERIOD_S)
        report = await sampler.report(["small"])
    assert (report.nodes, report.answering) == (3, 1)
    assert report.totals["requests"] == 2
    assert len(report.times) == 2


async def test_nobody_looks_and_little_is_read() -> None:
    nodes = FakeNodes()
    async with sampling(nodes, lambda: [UP]):
        await asyncio.sleep(10 * PERIOD_S - 1)
    assert nodes.readings == 10


async def test_somebody_looks_and_more_is_read_at_once() -> None:
    nodes = FakeNodes()
    async with sampling(nodes, lambda: [UP]) as sampler:
        await asyncio.sleep(PERIOD_S / 2)
        assert nodes.readings == 1
        for _ in range(5):
            await sampler.report(["small"])
            await asyncio.sleep(WATCHED_PERIOD_S)
    assert nodes.readings == 6


async def test_the_nodes_are_those_of_before_while_nobody_knows_them() -> None:
    answers = iter([[UP]])

    def list_addresses() -> list[str]:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionError("the GCS is away") from None

    async with sampling(FakeNodes(), list_addresses) as sampler:
        await asyncio.sleep(PERIOD_S + 1)
        report = await sampler.report(["small"])
    assert (report.nodes, report.answering) == (1, 1)
    assert len(report.times) == 1


async def test_without_any_node_there_are_no_figures() -> None:
    async with sampling(FakeNodes(), list) as sampler:
        await asyncio.sleep(PERIOD_S + 1)
        report = await sampler.report(["small"])
    assert (report.nodes, report.totals["requests"]) == (0, 0)


def test_only_nodes_that_live_are_asked() -> None:
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8080},
        {"Alive": False, "NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "fd00::1", "MetricsExportPort": 8081},
    ]
    assert node_addresses(nodes) == ["10.0.0.1:8080", "[fd00::1]:8081"]
