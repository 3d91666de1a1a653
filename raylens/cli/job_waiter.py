"""Waits for the ends of many jobs, with one poll for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Self

from raylens.cli.client import TERMINAL, Client, Job
from raylens.cli.errors import StatusError

FIELDS = ("id", "status", "output", "error")
"""The fields of a job that has ended."""
MIN_PERIOD_S = 0.25
"""Time between two polls while jobs end."""
MAX_PERIOD_S = 1.0
"""Longest time between two polls; the time doubles after each poll that finds no end."""

_End = asyncio.Future[Job]


class JobWaiter(AbstractAsyncContextManager["JobWaiter"]):
    """Asks the server periodically for all jobs that are waited for.

    Without a waiter, it asks nothing. Leave it only after all waits have ended.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waits: dict[_End, str] = {}
        """Job ids by the future of their waiter."""
        self._has_waits = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._polling = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._polling.cancel()
        await asyncio.wait([self._polling])

    async def wait_for_end(self, job_id: str) -> Job:
        """Wait until the job ends, and return its ``FIELDS``.

        Raises ``StatusError`` with the status 404 if the server doesn't have the job, and
        ``ClientError`` if asking for it fails for good.
        """
        end: _End = asyncio.get_running_loop().create_future()
        self._waits[end] = job_id
        self._has_waits.set()
        try:
            return await end
        finally:
            del self._waits[end]
            if not self._waits:
                self._has_waits.clear()

    async def _poll(self) -> None:
        period = MIN_PERIOD_S
        while True:
            await self._has_waits.wait()
            await self._client.sleep(period)
            is_idle = await self._ask()
            period = min(2 * period, MAX_PERIOD_S) if is_idle else MIN_PERIOD_S

    async def _ask(self) -> bool:
        """Ask for the jobs, and end the waits that are over. Return whether all of them go on.

        A wait that begins after the question isn't ended by the answer: the job may have been
        queued again in between.
        """
        waits = dict(self._waits)
        try:
            jobs = await self._client.get_many(sorted(set(waits.values())), FIELDS)
            by_id = {job["id"]: job for job in jobs}
            for end, job_id in waits.items():
                _settle(end, by_id.get(job_id), job_id)
        except Exception as error:  # of any kind: nobody may wait forever
            _fail(waits, error)
        return bool(waits) and not any(end.done() for end in waits)


def _settle(end: _End, job: Job | None, job_id: str) -> None:
    """End a wait if its job has ended or is lost. The waiter may have been canceled before."""
    if end.done():
        return
    if job is None:
        end.set_exception(StatusError(404, f"the server has lost the job {job_id}"))
    elif job["status"] in TERMINAL:
        end.set_result(job)


def _fail(ends: Iterable[_End], error: Exception) -> None:
    for end in ends:
        if not end.done():
            end.set_exception(error)
