"""Claims jobs from the store under a lease and runs them, at most ``workers`` at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from raylens.core.config import JobsConfig
from raylens.core.errors import DeadlineExceeded, Overloaded, RaylensError
from raylens.core.logs import current_request_id
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import Job, JobState, Progress
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.poll_loop import PollLoop
from raylens.jobs.store import Change, JobStore
from raylens.jobs.transitions import RetryPolicy, Transition, retry_or_fail, start, succeed

logger = logging.getLogger(__name__)

SETTLE_RETRY_S = 1.0
"""Seconds until a result is stored again after the store has failed."""
PROGRESS_PERIOD_S = 0.5
"""Shortest time between two stored progress reports of a job, in seconds."""

SaveProgress = Callable[[Progress, dict[str, Any] | None], Awaitable[None]]
"""Stores a job's progress and, unless it is None, its partial output."""
RunJob = Callable[[Job, float, SaveProgress], Awaitable[dict[str, Any]]]
"""Runs a job until the attempt's deadline, and returns its output."""
Changes = GroupCommit[Change, Job | RaylensError | None]


@dataclass
class _Attempt:
    """An attempt that runs in this process."""

    job: Job
    task: asyncio.Task[None]
    lease_until: float


class Dispatcher:
    """Runs claimed jobs, and stores their results.

    ``announce`` adds the deliveries that announce a job's new state. ``on_change`` is called with
    every changed job. ``clock`` is the store's clock.

    The lease of a running job is renewed. If that fails, the attempt stops before the lease
    expires, because another process may then claim the job.
    """

    def __init__(
        self,
        store: JobStore,
        changes: Changes,
        run_job: RunJob,
        config: JobsConfig,
        owner: str,
        clock: Callable[[], float],
        announce: Callable[[Job], Transition],
        on_change: Callable[[Job], None],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._changes = changes
        self._run_job = run_job
        self._config = config
        self._owner = owner
        self._clock = clock
        self._announce = announce
        self._on_change = on_change
        self._metrics = metrics
        self._retry_policy = RetryPolicy(config.backoff_s, config.max_backoff_s)
        self._running: dict[str, _Attempt] = {}
        self._poll_loop = PollLoop(self._claim, "jobs")

    def wake(self) -> None:
        """Look for due jobs soon."""
        self._poll_loop.wake()

    def stop(self, job_id: str) -> None:
        """Stop the attempt at a job, if this process runs one."""
        attempt = self._running.get(job_id)
        if attempt is not None:
            attempt.task.cancel()

    async def serve(self) -> None:
        """Claim and run jobs until canceled.

        Then the running attempts stop. Their leases expire by themselves.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll_loop.serve())
                group.create_task(self._renew_leases())
        finally:
            for attempt in self._running.values():
                attempt.task.cancel()

    async def _claim(self) -> bool:
        """Claim a job for each free worker. Return whether more jobs may be due."""
        free = self._config.workers - len(self._running)
        if free <= 0:
            return False
        now = self._clock()
        lease_until = now + self._config.lease_s
        jobs = await self._store.claim(
            free, now, lambda job: self._announce(start(job, now, self._owner, lease_until))
        )
        for job in jobs:
            if job.state is not JobState.RUNNING:
                self._publish(job)
            elif lease_until - self._clock() > self._config.lease_s / 2:
                self._start(job, lease_until)
            else:
                # The claim took so long that the lease could expire before its first renewal.
                logger.warning("job %s: not started, because the claim took too long", job.id)
        return len(jobs) == free

    def _start(self, job: Job, lease_until: float) -> None:
        # An old attempt may still run here if this process was suspended until its lease expired.
        self.stop(job.id)
        task = asyncio.create_task(self._run_and_settle(job))
        attempt = self._running[job.id] = _Attempt(job, task, lease_until)
        task.add_done_callback(lambda _: self._on_done(attempt))
        self._on_change(job)

    def _on_done(self, attempt: _Attempt) -> None:
        if self._running.get(attempt.job.id) is attempt:
            del self._running[attempt.job.id]
        if not attempt.task.cancelled() and (error := attempt.task.exception()) is not None:
            logger.error("job %s: the attempt crashed", attempt.job.id, exc_info=error)
        self.wake()

    async def _run_and_settle(self, job: Job) -> None:
        current_request_id.set(job.id)
        code = "canceled"
        try:
            transition, code = await self._run(job)
        finally:
            self._metrics.record_attempt(job.type, code)
        result = await self._settle(
            Change(job.id, lambda stored: self._announce(transition(stored)), job.fence)
        )
        if isinstance(result, Job):
            self._publish(result)
        else:
            logger.warning("job %s: the result is discarded, because the lease was lost", job.id)

    async def _run(self, job: Job) -> tuple[Callable[[Job], Job], str]:
        """Run one attempt. Return the job's transition and the attempt's code for the metrics."""
        now = self._clock()
        seconds = min(now + self._config.attempt_timeout_s, job.deadline) - now
        # The graph's deadlines use this machine's clock, not the store's.
        deadline = time.time() + seconds
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                output = await self._run_job(job, deadline, self._progress_saver(job))
        except TimeoutError:
            error: RaylensError = DeadlineExceeded(f"the attempt took longer than {seconds:.0f} s")
        except RaylensError as raised:
            error = raised
        except OSError as raised:
            logger.exception("job %s: file or network access failed", job.id)
            error = Overloaded(
                f"file or network access failed: {type(raised).__name__}; see the server's log"
            )
        except Exception as raised:
            logger.exception("job %s: internal error", job.id)
            error = RaylensError(f"internal error: {type(raised).__name__}; see the server's log")
        else:
            return (lambda stored: succeed(stored, output, self._clock())), "ok"
        logger.info("job %s, attempt %d: %s: %s", job.id, job.attempts, error.code, error.message)
        policy = self._retry_policy
        return (lambda stored: retry_or_fail(stored, error, policy, self._clock())), error.code

    async def _settle(self, change: Change) -> Job | RaylensError | None:
        """Store a result, and retry while the store fails.

        The retries end when the lease can't be renewed, because that cancels the attempt.
        """
        while True:
            try:
                return await self._changes.submit(change)
            except Exception:
                logger.exception("job %s: storing the result failed", change.id)
                await asyncio.sleep(SETTLE_RETRY_S)

    def _publish(self, job: Job) -> None:
        if job.state.is_terminal:
            self._metrics.record_end(job.type, job.state, job.duration_s)
        self._on_change(job)

    def _progress_saver(self, job: Job) -> SaveProgress:
        last_save = 0.0

        async def save(progress: Progress, partial: dict[str, Any] | None) -> None:
            nonlocal last_save
            is_complete = progress.done >= progress.total
            if time.monotonic() - last_save < PROGRESS_PERIOD_S and not is_complete:
                return
            last_save = time.monotonic()

            def apply(stored: Job) -> Transition:
                output = stored.output if partial is None else partial
                return Transition(replace(stored, progress=progress, output=output))

            try:
                saved = await self._changes.submit(Change(job.id, apply, job.fence))
            except Exception:
                # The attempt goes on: the next report replaces this one.
                logger.exception("job %s: storing the progress failed", job.id)
                return
            if isinstance(saved, Job):
                self._on_change(saved)

        return save

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_s / 3)
            until = self._clock() + self._config.lease_s
            fences = {job_id: attempt.job.fence for job_id, attempt in self._running.items()}
            renewed: set[str] | None = None
            try:
                async with asyncio.timeout(self._config.lease_s / 3):
                    renewed = await self._store.renew(fences, until) if fences else set()
            except Exception:
                logger.exception("renewing leases failed")
            self._apply_renewal(fences, renewed, until)

    def _apply_renewal(
        self, fences: dict[str, int], renewed: set[str] | None, until: float
    ) -> None:
        """Stop the attempts whose lease is lost or could expire before the next renewal.

        ``fences`` are the fences in the renewal, by job id. ``renewed`` is None if it failed.
        """
        for job_id, attempt in list(self._running.items()):
            if fences.get(job_id) != attempt.job.fence:
                continue
            if renewed is not None and job_id in renewed:
                attempt.lease_until = until
                continue
            is_near_end = attempt.lease_until - self._clock() < self._config.lease_s / 2
            if renewed is not None or is_near_end:
                logger.warning("job %s: the attempt stops, because its lease is lost", job_id)
                attempt.task.cancel()
