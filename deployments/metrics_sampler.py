"""Reads what all nodes of the cluster export for Prometheus, again and again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from raylens.status.history import History
from raylens.status.report import Report, make_report

logger = logging.getLogger(__name__)

WATCHED_PERIOD_S = 10.0
"""Processes tell Ray their numbers that often."""
PERIOD_S = 30.0
"""While nobody looks: a page takes Ray's agent on the node 0.12 s of CPU."""
WATCHED_FOR_S = 60.0
"""After a report, somebody is taken to look for that long."""
TIMEOUT_S = 3.0
"""For the page of a node, and for the list of nodes."""
MAX_PAGE_BYTES = 64 * 2**20
Pages = dict[str, str | None]


class MetricsSampler:
    """Keeps the history of an application's metrics."""

    def __init__(
        self,
        application: str,
        list_addresses: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``list_addresses`` returns where each node exports its metrics, as ``host:port``, and may
        wait."""
        self._history = History(application)
        self._list_addresses = list_addresses
        self._clock = clock
        self._listing: asyncio.Task[list[str]] | None = None
        self._addresses: list[str] = []
        self._answer = make_report([], [])
        self._answered: tuple[float | None, tuple[str, ...]] = (None, ())
        """The newest moment and the models of the last answer."""
        self._is_wanted = asyncio.Event()
        self._reported_at = -WATCHED_FOR_S
        self._read_at = -PERIOD_S

    async def run(self, client: httpx.AsyncClient) -> None:
        """Read the metrics for as long as this process lives."""
        while True:
            try:
                await self._read(client)
            except Exception:  # a page that nobody has foreseen
                logger.exception("the nodes' metrics can't be read")
            await self._pause()

    async def report(self, models: Iterable[str]) -> Report:
        """Return the figures of the last minutes, and read others soon."""
        self._reported_at = self._clock()
        self._is_wanted.set()
        moments = self._history.moments
        asked = (moments[-1].time if moments else None, tuple(models))
        if self._answered != asked:
            self._answer = await asyncio.to_thread(make_report, moments, models)
            self._answered = asked
        return self._answer

    async def _read(self, client: httpx.AsyncClient) -> None:
        """Add a moment to the history."""
        self._read_at = self._clock()
        try:
            await self._list_nodes()
        except Exception as error:  # the GCS is away: the nodes may well answer
            logger.info("the nodes can't be listed: %r", error)
        read = await asyncio.gather(*(_read_page(client, each) for each in self._addresses))
        pages: Pages = dict(zip(self._addresses, read, strict=True))
        await asyncio.to_thread(self._history.add, time.time(), pages)

    async def _list_nodes(self) -> None:
        """Learn which nodes there are, if the GCS says so in time. It is asked once at a time."""
        if self._listing is None or self._listing.done():
            listing = asyncio.to_thread(lambda: list(self._list_addresses()))
            self._listing = asyncio.create_task(listing)
        await asyncio.wait([self._listing], timeout=TIMEOUT_S)
        if self._listing.done():
            self._addresses = self._listing.result()

    async def _pause(self) -> None:
        """Wait until the next reading is due. A report may make it due earlier."""
        while (remaining := self._read_at + self._period_s - self._clock()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._is_wanted.wait()
            self._is_wanted.clear()

    @property
    def _period_s(self) -> float:
        is_watched = self._clock() - self._reported_at < WATCHED_FOR_S
        return WATCHED_PERIOD_S if is_watched else PERIOD_S


async def _read_page(client: httpx.AsyncClient, address: str) -> str | None:
    """Return what a node exports; None if it doesn't answer in time, or with too much."""
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            client.stream("GET", f"http://{address}/metrics") as answer,
        ):
            answer.raise_for_status()
            parts = []
            size = 0
            async for part in answer.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_PAGE_BYTES:
                    raise ValueError(f"over {MAX_PAGE_BYTES} bytes")
            return b"".join(parts).decode(errors="replace")
    except (TimeoutError, ValueError, httpx.HTTPError) as error:
        logger.info("the metrics of %s can't be read: %r", address, error)
        return None


def node_addresses(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return where each of Ray's nodes that is alive exports its metrics."""
    return [
        _join(node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in nodes
        if node["Alive"]
    ]


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
