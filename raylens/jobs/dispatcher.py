"""Takes jobs from the store under a lease and runs them, as many at once as there are workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from raylens.core.config import JobsConfig
from raylens.core.errors import DeadlineExceeded, Overloaded, RaylensError
from raylens.core.logs import request_id
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import Job, JobState, Progress
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.poll_loop import PollLoop
from raylens.jobs.store import Change, JobStore, Transition
from raylens.jobs.transitions import RetryPolicy, retry_or_fail, start, succeed

logger = logging.getLogger(__name__)

TROUBLE_S = 1.0
"""Before the store is given a result again after it has failed."""
REPORT_PERIOD_S = 0.5
"""Progress is stored no more often than this."""

Save = Callable[[Progress, dict[str, Any] | None], Awaitable[None]]
Work = Callable[[Job, float, Save], Awaitable[dict[str, Any]]]
"""A job, the deadline of the attempt and where to report progress, to the job's output."""
Changes = GroupCommit[Change, Job | RaylensError | None]


@dataclass
class _Attempt:
    job: Job
    task: asyncio.Task[None]
    lease_until: float


class Dispatcher:
    """``announce`` makes the deliveries that go with a job's new state; ``changed`` hears of every
    new state.

    A lease is renewed while its job runs. Where that fails until it ends, the attempt stops: by
    then another process may have the job.
    """

    def __init__(
        self,
        store: JobStore,
        changes: Changes,
        work: Work,
        config: JobsConfig,
        owner: str,
        clock: Callable[[], float],
        announce: Callable[[Job], Transition],
        changed: Callable[[Job], None],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._changes = changes
        self._work = work
        self._config = config
        self._owner = owner
        self._clock = clock
        self._announce = announce
        self._changed = changed
        self._metrics = metrics
        self._retries = RetryPolicy(config.backoff_s, config.max_backoff_s)
        self._running: dict[str, _Attempt] = {}
        self._poll_loop = PollLoop(self._claim, "jobs")

    def wake(self) -> None:
        """There may be something to do."""
        self._poll_loop.wake()

    def drop(self, job_id: str) -> None:
        """Stops the attempt at a job that is this process's no more."""
        attempt = self._running.get(job_id)
        if attempt is not None:
            attempt.task.cancel()

    async def serve(self) -> None:
        """Until it is canceled; then the attempts that run are stopped, and their leases left to
        end."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll_loop.serve())
                group.create_task(self._keep_renewing())
        finally:
            for attempt in self._running.values():
                attempt.task.cancel()

    async def _claim(self) -> bool:
        """Starts what is due, as far as workers are free; whether there may be more."""
        free = self._config.workers - len(self._running)
        if free <= 0:
            return False
        now = self._clock()
        until = now + self._config.lease_s
        jobs = await self._store.claim(
            free, now, lambda job: self._announce(start(job, now, self._owner, until))
        )
        for job in jobs:
            if job.state is not JobState.RUNNING:
                self._tell(job)
            elif until - self._clock() > self._config.lease_s / 2:
                self._begin(job, until)
            else:  # the claim took so long that another may have it before this one can renew
                logger.warning("job %s: the store was slow, and its lease is nearly over", job.id)
        return len(jobs) == free

    def _begin(self, job: Job, until: float) -> None:
        # Of a job that is here already only the lease was lost, while this process slept.
        self.drop(job.id)
        task = asyncio.create_task(self._attempt(job))
        attempt = self._running[job.id] = _Attempt(job, task, until)
        task.add_done_callback(lambda _: self._ended(attempt))
        self._changed(job)

    def _ended(self, attempt: _Attempt) -> None:
        if self._running.get(attempt.job.id) is attempt:
            del self._running[attempt.job.id]
        if not attempt.task.cancelled() and (error := attempt.task.exception()) is not None:
            logger.error("an attempt at job %s broke", attempt.job.id, exc_info=error)
        self.wake()

    async def _attempt(self, job: Job) -> None:
        request_id.set(job.id)
        code = "canceled"
        try:
            change, code = await self._outcome(job)
        finally:
            self._metrics.attempt(job.type, code)
        settled = await self._settle(
            Change(job.id, lambda stored: self._announce(change(stored)), job.fence)
        )
        if isinstance(settled, Job):
            self._tell(settled)
        else:
            logger.warning("job %s is this attempt's no more: its result is dropped", job.id)

    async def _outcome(self, job: Job) -> tuple[Callable[[Job], Job], str]:
        """What an attempt makes of its job, and the attempt's code for the metrics."""
        deadline = min(self._clock() + self._config.attempt_timeout_s, job.deadline)
        # What works on it counts by this machine's clock.
        seconds = deadline - self._clock()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                output = await self._work(job, time.time() + seconds, self._saver(job))
        except TimeoutError:
            error: RaylensError = DeadlineExceeded(f"the attempt took longer than {seconds:.0f} s")
        except RaylensError as raised:
            error = raised
        except OSError as raised:
            logger.exception("job %s: a file or a connection failed", job.id)
            error = Overloaded(
                f"a file or a connection failed ({type(raised).__name__}); the server's log tells more"
            )
        except Exception as raised:
            logger.exception("job %s: unforeseen error", job.id)
            error = RaylensError(
                f"an internal error ({type(raised).__name__}); the server's log tells more"
            )
        else:
            return (lambda stored: succeed(stored, output, self._clock())), "ok"
        logger.info("job %s, attempt %d: %s: %s", job.id, job.attempts, error.code, error.message)
        return (
            lambda stored: retry_or_fail(stored, error, self._retries, self._clock())
        ), error.code

    async def _settle(self, change: Change) -> Job | RaylensError | None:
        """Tries until the store takes it; a lease that ends meanwhile stops it."""
        while True:
            try:
                return await self._changes(change)
            except Exception:
                logger.exception("the store can't take a result")
                await asyncio.sleep(TROUBLE_S)

    def _tell(self, job: Job) -> None:
        if job.state.is_terminal:
            self._metrics.ended(job.type, job.state, job.seconds)
        self._changed(job)

    def _saver(self, job: Job) -> Save:
        last = 0.0

        async def save(progress: Progress, partial: dict[str, Any] | None) -> None:
            nonlocal last
            if time.monotonic() - last < REPORT_PERIOD_S and progress.done < progress.total:
                return
            last = time.monotonic()

            def apply(stored: Job) -> Transition:
                return Transition(
                    replace(
                        stored,
                        progress=progress,
                        output=stored.output if partial is None else partial,
                    )
                )

            try:
                saved = await self._changes(Change(job.id, apply, job.fence))
            except Exception:
                # The next report tells it as well; a job isn't worth less for it.
                logger.exception("job %s: its progress can't be stored", job.id)
                return
            if isinstance(saved, Job):
                self._changed(saved)

        return save

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_s / 3)
            until = self._clock() + self._config.lease_s
            fences = {job_id: attempt.job.fence for job_id, attempt in self._running.items()}
            held: set[str] | None = None
            try:
                async with asyncio.timeout(self._config.lease_s / 3):
                    held = await self._store.renew(fences, until) if fences else set()
            except Exception:
                logger.exception("the store can't renew leases")
            self._hold(fences, held, until)

    def _hold(self, fences: dict[str, int], held: set[str] | None, until: float) -> None:
        """Stops what was lost, and what may have been by the time of the next renewal."""
        for job_id, attempt in list(self._running.items()):
            if fences.get(job_id) != attempt.job.fence:
                continue
            if held is not None and job_id in held:
                attempt.lease_until = until
            elif held is not None or attempt.lease_until - self._clock() < self._config.lease_s / 2:
                logger.warning("job %s: the lease is lost, and the attempt stops", job_id)
                attempt.task.cancel()
