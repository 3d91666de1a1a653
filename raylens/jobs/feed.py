"""Versions of watched jobs, from one stream of changes for all watchers of a process."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection
from contextlib import suppress

from raylens.core.draining import Draining
from raylens.core.errors import FailureClass, Overloaded
from raylens.core.fairness import FairPlaces, current_client
from raylens.jobs.changed_jobs import ChangedJobs, ChangedJobsReader
from raylens.jobs.job import Job, unknown_job
from raylens.jobs.ports import JobService

logger = logging.getLogger(__name__)

RECHECK_S = 2.0
"""Seconds between two reads of all watched jobs: another process may have changed them."""
READ_PERIOD_S = 0.02
"""Shortest time between two reads of changed jobs, in seconds."""
ALL_PERIOD_S = 0.25
"""The same for those who watch all jobs."""
RETRY_S = 1.0
"""Seconds to wait after the queue couldn't be reached."""
_SHOWN = ("output",)
"""The bulky fields of the first and of the last version that a watcher gets."""
RETRY_AFTER_S = 5.0
"""``Retry-After`` if too many jobs are watched, in seconds."""


class _Watcher:
    """Hands the newest version of a job to one consumer."""

    def __init__(self, last_seen: Job, with_output: bool) -> None:
        self.with_output = with_output
        self._last_seen = last_seen
        self._newest: Job | None = last_seen
        self._has_news = asyncio.Event()
        self._has_ended = False

    def offer(self, job: Job | None) -> None:
        """Hand over a version of the job; None if the job is gone."""
        last = self._newest or self._last_seen
        has_output = self.with_output and job is not None and job.output != last.output
        if job is None or has_output or _differ(job, last):
            self._newest = job
            self._has_news.set()

    def end(self) -> None:
        """End the watch, whatever happens to the job."""
        self._has_ended = True
        self._has_news.set()

    async def next(self, timeout_s: float) -> Job | None:
        """Return the next version, or the last one again after ``timeout_s`` seconds.

        Return None if the job is gone, or the watch has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_news.wait()
        self._has_news.clear()
        return None if self._has_ended else self._newest


class JobFeed:
    """Watches jobs. ``limit`` is the most watchers of a client at a time, or fewer if other clients
    have some, too; more are refused as overloaded.

    While there are watchers, one call at a time waits for changes of any job, and the watched ones
    among those are read together. The number of watchers hardly matters.

    When this process drains, all watches end.
    """

    def __init__(self, jobs: JobService, limit: int, draining: Draining | None = None) -> None:
        self._jobs = jobs
        self._draining = draining or Draining()
        self._changed_jobs = ChangedJobsReader(jobs)
        self._places = FairPlaces("event streams are open", limit)
        self._watchers: defaultdict[str, set[_Watcher]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def limit(self) -> int:
        return self._places.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._places.limit = limit

    @property
    def is_handed_over(self) -> bool:
        """Whether watches end because another process has to go on with them."""
        return self._draining.has_begun

    async def watch(
        self, job_id: str, keepalive_s: float, with_output: bool = False
    ) -> AsyncGenerator[Job, None]:
        """Yield the job now and at each change of its state, attempts, progress or problem, until
        it has ended or is removed, or this process drains. Its input is left out, and its output
        until it has ended, unless that is asked for: then its changes count, too.

        If nothing changes for ``keepalive_s`` seconds, the last version is yielded again. Raises
        ``UnknownJob``, and ``Overloaded`` if the limit is reached or the queue can't be reached.
        """
        with self._places.take(current_client.get(), retry_after=RETRY_AFTER_S):
            job: Job | None = (await self._jobs.get_many([job_id], _SHOWN)).get(job_id)
            if job is None:
                raise unknown_job(job_id)
            watcher = _Watcher(job, with_output)
            self._add(job_id, watcher)
            try:
                while job is not None:
                    yield job
                    if job.state.is_terminal or self.is_handed_over:
                        return
                    job = await watcher.next(keepalive_s)
            finally:
                self._remove(job_id, watcher)

    async def watch_all(
        self, cursor: str, owner: str, bulky_fields: Collection[str], keepalive_s: float
    ) -> AsyncGenerator[ChangedJobs, None]:
        """Yield what has changed of an owner's jobs since ``cursor``, and then whatever changes,
        until this process drains. An empty owner means everybody.

        The first value comes at once, and later ones after ``keepalive_s`` seconds even if nothing
        has changed. Changes by another process are not among them. Raises ``Overloaded`` if the
        limit is reached or the queue can't be reached.
        """
        clock = asyncio.get_running_loop().time
        with self._places.take(current_client.get(), retry_after=RETRY_AFTER_S):
            changed = await self._changed_jobs.read(cursor, owner, bulky_fields)
            yield changed
            yielded_at = clock()
            while not self.is_handed_over:
                # All at the same moments, so that they go on with the same cursor.
                await asyncio.sleep(ALL_PERIOD_S - clock() % ALL_PERIOD_S)
                try:
                    changed = await self._changed_jobs.wait(
                        changed.cursor, owner, bulky_fields, RECHECK_S
                    )
                except Overloaded:
                    await asyncio.sleep(RETRY_S)
                    changed = ChangedJobs(changed.cursor, {})
                if changed.versions != {} or clock() - yielded_at >= keepalive_s:
                    yield changed
                    yielded_at = clock()

    def _add(self, job_id: str, watcher: _Watcher) -> None:
        self._watchers[job_id].add(watcher)
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
            self._ending = asyncio.create_task(self._end_when_draining())

    def _remove(self, job_id: str, watcher: _Watcher) -> None:
        self._watchers[job_id].discard(watcher)
        if not self._watchers[job_id]:
            del self._watchers[job_id]
        if not self._watchers and self._task is not None and self._ending is not None:
            self._task.cancel()
            self._ending.cancel()
            self._task = self._ending = None

    async def _end_when_draining(self) -> None:
        await self._draining.wait()
        for watcher in [watcher for each in self._watchers.values() for watcher in each]:
            watcher.end()

    async def _follow(self) -> None:
        cursor: str | None = None
        clock = asyncio.get_running_loop().time
        checked_at = clock()
        while True:
            try:
                changes = await self._jobs.wait_for_changes(cursor, RECHECK_S)
                if changes.owners is None or clock() - checked_at >= RECHECK_S:
                    ids = set(self._watchers)
                    checked_at = clock()
                else:
                    ids = changes.owners.keys() & self._watchers.keys()
                await self._read(ids)
                cursor = changes.cursor
            except Exception as error:
                if getattr(error, "failure_class", None) is not FailureClass.CAPACITY:
                    logger.exception("following the changes of jobs failed")
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(READ_PERIOD_S)

    async def _read(self, ids: set[str]) -> None:
        if not ids:
            return
        shown = {
            job_id
            for job_id in ids
            if any(watcher.with_output for watcher in self._watchers.get(job_id, ()))
        }
        jobs = await self._jobs.get_many(ids - shown, ()) if ids - shown else {}
        shown |= {job_id for job_id, job in jobs.items() if job.state.is_terminal}
        if shown:
            jobs |= await self._jobs.get_many(shown, _SHOWN)
        for job_id in ids:
            for watcher in self._watchers.get(job_id, ()):
                watcher.offer(jobs.get(job_id))


def _differ(job: Job, other: Job) -> bool:
    """Return whether two versions of a job differ in what a watcher sees."""
    return (job.state, job.attempts, job.progress, job.problem) != (
        other.state,
        other.attempts,
        other.progress,
        other.problem,
    )
