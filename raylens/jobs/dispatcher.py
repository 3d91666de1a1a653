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
from raylens.jobs.transitions import JobUpdate, RetryPolicy, retry_or_fail, start_or_fail, succeed

logger = logging.getLogger(__name__)

RESULT_RETRY_S = 1.0
"""Seconds to wait before retrying to store a result."""
PROGRESS_PERIOD_S = 0.5
"""Shortest time between two stored progress reports of a job, in seconds."""

SaveProgress = Callable[[Progress, dict[str, Any] | None], Awaitable[None]]
"""Stores a job's progress and, unless it is None, its partial output."""
RunJob = Callable[[Job, float, SaveProgress], Awaitable[dict[str, Any]]]
"""Runs one attempt and returns the job's output.

The second argument is ``attempt_deadline``, in seconds since the epoch, on this machine's clock.
"""
ChangeWriter = GroupCommit[Change, Job | RaylensError | None]


@dataclass
class _Attempt:
    """An attempt that runs in this process."""

    job: Job
    task: asyncio.Task[None]
    lease_until: float


class Dispatcher:
    """Runs claimed jobs, and stores their results.

    ``with_deliveries`` pairs a job in a new state with the webhook deliveries for that state, so
    that both are stored in one transaction. ``on_change`` is called after every stored change.
    ``clock`` is the store's clock.

    The lease of a running job is renewed. If that fails, the attempt stops before the lease
    expires, because another process may then claim the job.
    """

    def __init__(
        self,
        store: JobStore,
        change_writer: ChangeWriter,
        run_job: RunJob,
        config: JobsConfig,
        owner: str,
        clock: Callable[[], float],
        with_deliveries: Callable[[Job], JobUpdate],
        on_change: Callable[[Job], None],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._change_writer = change_writer
        self._run_job = run_job
        self._config = config
        self._owner = owner
        self._clock = clock
        self._with_deliveries = with_deliveries
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

        On cancellation, the running attempts are canceled too. Their leases are not released; they
        expire.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll_loop.serve())
                group.create_task(self._renew_leases())
        finally:
            for attempt in self._running.values():
                attempt.task.cancel()

    async def _claim(self) -> bool:
        """Claim as many jobs as may start now. Return whether to claim again at once."""
        free = self._config.workers - len(self._running)
        if free <= 0:
            return False
        now = self._clock()
        lease_until = now + self._config.lease_s

        def update(job: Job) -> JobUpdate:
            return self._with_deliveries(start_or_fail(job, now, self._owner, lease_until))

        jobs = await self._store.claim(free, now, update)
        for job in jobs:
            if job.state is not JobState.RUNNING:
                # start_or_fail() failed it: the deadline has passed or no attempt is left.
                self._record_and_notify(job)
            elif lease_until - self._clock() > self._config.lease_s / 2:
                self._spawn_attempt(job, lease_until)
            else:
                # The lease could expire before its first renewal.
                logger.warning(
                    "job %s: not started, because the claim took too long; it is claimed again "
                    "when its lease expires",
                    job.id,
                )
        return len(jobs) == free

    def _spawn_attempt(self, job: Job, lease_until: float) -> None:
        # An old attempt may still run here if this process was suspended until its lease expired.
        self.stop(job.id)
        task = asyncio.create_task(self._run_and_store(job))
        attempt = self._running[job.id] = _Attempt(job, task, lease_until)
        task.add_done_callback(lambda _: self._on_done(attempt))
        self._on_change(job)

    def _on_done(self, attempt: _Attempt) -> None:
        if self._running.get(attempt.job.id) is attempt:
            del self._running[attempt.job.id]
        if not attempt.task.cancelled() and (error := attempt.task.exception()) is not None:
            logger.error("job %s: the attempt crashed", attempt.job.id, exc_info=error)
        self.wake()

    async def _run_and_store(self, job: Job) -> None:
        current_request_id.set(job.id)
        code = "canceled"
        try:
            transition, code = await self._run(job)
        finally:
            self._metrics.record_attempt(job.type, code)
        result = await self._store_result(
            Change(job.id, lambda stored: self._with_deliveries(transition(stored)), job.fence)
        )
        if isinstance(result, Job):
            self._record_and_notify(result)
        else:
            logger.warning(
                "job %s: the result is discarded, because the job was canceled or its lease was "
                "lost",
                job.id,
            )

    async def _run(self, job: Job) -> tuple[Callable[[Job], Job], str]:
        """Run one attempt.

        Return the transition to apply to the job, and the code to record in the metrics: ``ok`` or
        an error's code.
        """
        seconds_left = job.deadline - self._clock()
        timeout_s = max(0.0, min(self._config.attempt_timeout_s, seconds_left))
        # The vision service's deadlines are on this machine's clock, not on the store's.
        attempt_deadline = time.time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                output = await self._run_job(job, attempt_deadline, self._progress_saver(job))
        except TimeoutError:
            message = f"the attempt did not finish in the {timeout_s:.0f} s it had"
            error: RaylensError = DeadlineExceeded(message)
        except RaylensError as raised:
            error = raised
        except OSError as raised:
            logger.exception("job %s: file or network access failed", job.id)
            # Overloaded, because that error is retryable.
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

    async def _store_result(self, change: Change) -> Job | RaylensError | None:
        """Store a result, and retry while the store fails.

        The retries end when the lease can't be renewed, because that cancels the attempt.
        """
        while True:
            try:
                return await self._change_writer.submit(change)
            except Exception:
                logger.exception("job %s: storing the result failed", change.id)
                await asyncio.sleep(RESULT_RETRY_S)

    def _record_and_notify(self, job: Job) -> None:
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

            def update(stored: Job) -> JobUpdate:
                output = stored.output if partial is None else partial
                return JobUpdate(replace(stored, progress=progress, output=output))

            try:
                saved = await self._change_writer.submit(Change(job.id, update, job.fence))
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

        ``fences`` maps the job ids of the renewal request to their fences. ``renewed`` is None if
        the request failed.
        """
        for job_id, attempt in list(self._running.items()):
            if fences.get(job_id) != attempt.job.fence:
                continue  # started after the request was made
            if renewed is not None and job_id in renewed:
                attempt.lease_until = until
                continue
            is_near_end = attempt.lease_until - self._clock() < self._config.lease_s / 2
            if renewed is not None or is_near_end:
                logger.warning(
                    "job %s: the attempt stops, because its lease is lost or about to expire",
                    job_id,
                )
                attempt.task.cancel()
