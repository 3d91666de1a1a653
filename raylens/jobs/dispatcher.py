"""Claims jobs from the store under a lease and runs them, a limited number at a time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from raylens.core.config import JobsConfig
from raylens.core.errors import FailureClass, RaylensError
from raylens.core.logs import current_request_id
from raylens.jobs.circuit_breaker import CircuitBreakers
from raylens.jobs.clock import StoreClock
from raylens.jobs.failures import to_json
from raylens.jobs.job import Job, JobState, Problem
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.poll_loop import PollLoop
from raylens.jobs.progress import ChangeWriter, MakeDelivery, ProgressReporter, Reporter
from raylens.jobs.store import Change, JobStore, TypeFilter
from raylens.jobs.transitions import (
    JobUpdate,
    RetryPolicy,
    end_failed_attempt,
    expire,
    fail,
    release,
    start_or_fail,
    succeed,
)
from raylens.jobs.types.base import LastEvent
from raylens.jobs.work import run_in_time

logger = logging.getLogger(__name__)

RESULT_RETRY_S = 1.0
"""Seconds to wait before retrying to store a result."""
HANDOVER_PERIOD_S = 0.02
"""Seconds between two looks at whether all jobs are handed over."""
EXPIRY_PERIOD_S = 5.0
"""Longest time between two looks for jobs whose deadline has passed, in seconds."""
EXPIRY_BATCH = 200
"""Maximum number of jobs that expire in one transaction."""

Transition = Callable[[Job], Job]


class JobRunner(Protocol):
    """Runs the work of jobs."""

    @property
    def endless_types(self) -> frozenset[str]:
        """Names of the types whose jobs run until they are canceled."""
        ...

    def last_events(self, job: Job) -> tuple[dict[str, Any] | None, list[LastEvent]]:
        """Return the output of a job that is about to be canceled, and what its webhook is told
        before that."""
        ...

    def attempt_timeout(self, job: Job) -> float:
        """Return how long an attempt may take, in seconds; the job's deadline limits it too."""
        ...

    def timeout(self, job: Job) -> float:
        """Return the seconds from the requeue of a job to its deadline."""
        ...

    async def run(self, job: Job, timeout_s: float, reporter: Reporter) -> Any:
        """Run one attempt, which ends in ``timeout_s`` seconds. Return the job's output.

        Any exception ends the attempt: :mod:`raylens.jobs.failures` says how.
        """
        ...


@dataclass
class _Attempt:
    """An attempt that runs in this process."""

    job: Job
    reporter: ProgressReporter
    ends_at: float
    """When it times out, on the store's clock."""
    lease_until: float
    task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Dispatcher:
    """Runs claimed jobs, and stores their results.

    It runs jobs of ``types``, at most ``limit()`` at a time.
    ``with_deliveries`` takes a job before and after a transition, and pairs the latter with its
    webhook deliveries, so that both are stored in one transaction. ``make_delivery`` makes that of
    an event of a running job. ``on_change`` is called after every stored change.

    The lease of a running job is renewed. If that fails, the attempt stops before the lease
    expires, because another process may then claim the job.
    """

    def __init__(
        self,
        store: JobStore,
        change_writer: ChangeWriter,
        runner: JobRunner,
        config: JobsConfig,
        types: TypeFilter,
        limit: Callable[[], int],
        owner: str,
        clock: StoreClock,
        with_deliveries: Callable[[Job, Job], JobUpdate],
        make_delivery: MakeDelivery,
        on_change: Callable[[Job], None],
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._change_writer = change_writer
        self._runner = runner
        self._config = config
        self._types = types
        self._limit = limit
        self._owner = owner
        self._clock = clock
        self._with_deliveries = with_deliveries
        self._make_delivery = make_delivery
        self._on_change = on_change
        self._metrics = metrics
        self._retry_policy = RetryPolicy(config.backoff_s, config.max_backoff_s)
        self._breakers = CircuitBreakers(self._retry_policy)
        self._running: dict[str, _Attempt] = {}
        self._interrupted: dict[str, _Attempt] = {}
        """Attempts that stopped because the store failed, or can't begin. Their jobs still have to
        be released."""
        self._is_claiming = False
        self._expire_at = 0.0
        """When to look for jobs whose deadline has passed, on the store's clock."""
        self._paused_until = -math.inf
        """Until when no job is claimed, on the machine's clock."""
        self._poll_loop = PollLoop(self._poll, self._find_next_due, "jobs")

    @property
    def running(self) -> int:
        """Jobs that this process runs. A claim on its way counts as one."""
        return len(self._running) + self._is_claiming

    def pause(self, seconds: float = math.inf) -> None:
        """Claim no job for a time, or until a longer pause ends that has begun."""
        until = self._clock.machine.monotonic() + seconds
        self._paused_until = max(self._paused_until, until)

    async def hand_over(self) -> None:
        """Stop the running attempts, and queue their jobs again for other processes.

        An attempt doesn't count. Returns when the last one is queued; while the store fails, that
        isn't the case.
        """
        while self._is_claiming or self._running or self._interrupted:
            for job_id, attempt in self._running.items():
                if job_id not in self._interrupted:
                    attempt.stop()
                    self._interrupted[job_id] = attempt
            self.wake()
            await asyncio.sleep(HANDOVER_PERIOD_S)

    def wake(self) -> None:
        """Look for due jobs soon."""
        self._poll_loop.wake()

    def stop(self, job_id: str) -> None:
        """Stop the attempt at a job, if this process runs one."""
        attempt = self._running.get(job_id)
        if attempt is not None:
            attempt.stop()

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
                attempt.stop()

    async def _poll(self) -> bool:
        """Claim as many jobs as may start now. Return whether to poll again at once."""
        await self._release_interrupted()
        now = self._clock.now()
        if now >= self._expire_at:
            return await self._expire(now)
        free = self._free_workers
        if free <= 0:
            return False
        self._is_claiming = True
        try:
            claimed = await self._claim(free, now)
            if self._is_paused:
                await self._release_interrupted()  # before the process ends
        finally:
            self._is_claiming = False
        return claimed == free

    @property
    def _is_paused(self) -> bool:
        return self._clock.machine.monotonic() < self._paused_until

    @property
    def _free_workers(self) -> int:
        if self._is_paused:
            return 0
        return self._limit() - len(self._running)

    async def _find_next_due(self) -> float:
        """Return the seconds until a job can be claimed or its deadline passes."""
        held = self._breakers.find_open(self._clock.now())
        has_free_worker = self._free_workers > 0
        due = await self._store.next_due(held.keys(), has_free_worker, self._types)
        now = self._clock.now()
        self._expire_at = min(due.expiry, now + EXPIRY_PERIOD_S)
        reopenings = held.values() if has_free_worker else ()
        return min(due.expiry, due.claim, *reopenings) - now

    async def _release_interrupted(self) -> None:
        """Queue the jobs again whose attempts stopped, or can't begin."""
        for job_id, attempt in list(self._interrupted.items()):
            if attempt.task is not None and not attempt.task.done():
                continue
            attempt.reporter.discard_invalid()
            try:
                result = await self._release(attempt)
            except RaylensError:
                raise  # the store fails again
            except Exception:
                # Another process may claim the job once the lease has expired.
                logger.exception("job %s: it can't be queued again", job_id)
                result = None
            del self._interrupted[job_id]
            if isinstance(result, Job):
                self._on_change(result)

    async def _release(self, attempt: _Attempt) -> Job | RaylensError | None:
        def update(job: Job) -> JobUpdate:
            reported = attempt.reporter.add_to(JobUpdate(job))
            return replace(reported, job=release(reported.job))

        result: Job | RaylensError | None = await self._change_writer.submit(
            Change(attempt.job.id, update, attempt.job.fence)
        )
        return result

    async def _expire(self, now: float) -> bool:
        """Fail the queued jobs whose deadline has passed. Return whether there may be more."""

        def update(job: Job) -> JobUpdate:
            return self._with_deliveries(job, expire(job, now))

        expired = await self._store.expire(EXPIRY_BATCH, now, update)
        for job in expired:
            self._record_and_notify(job)
        if len(expired) < EXPIRY_BATCH:
            self._expire_at = now + EXPIRY_PERIOD_S
        return True

    async def _claim(self, free: int, now: float) -> int:
        """Claim at most ``free`` jobs and start their attempts. Return how many were claimed.

        If a pause has begun meanwhile, they have to be released.
        """
        held = self._breakers.find_open(now)
        lease_until = now + self._config.lease_s

        def update(job: Job) -> JobUpdate:
            started = start_or_fail(job, now, self._owner, lease_until)
            return self._with_deliveries(job, started)

        jobs = await self._store.claim(free, now, update, held.keys(), self._types)
        for job in jobs:
            if job.state is not JobState.RUNNING:
                # start_or_fail() failed it: the deadline has passed or no attempt is left.
                self._record_and_notify(job)
            elif self._is_paused:
                self._interrupted[job.id] = self._make_attempt(job, lease_until)
            elif lease_until - self._clock.now() > self._config.lease_s / 2:
                self._spawn_attempt(job, lease_until)
            else:
                # The lease could expire before its first renewal.
                logger.warning(
                    "job %s: not started, because the claim took too long; it is queued again",
                    job.id,
                )
                self._interrupted[job.id] = self._make_attempt(job, lease_until)
        return len(jobs)

    def _make_attempt(self, job: Job, lease_until: float) -> _Attempt:
        reporter = ProgressReporter(
            job, self._change_writer, self._clock.machine, self._on_change, self._make_delivery
        )
        now = self._clock.now()
        timeout_s = min(self._runner.attempt_timeout(job), job.deadline - now)
        return _Attempt(job, reporter, now + max(0.0, timeout_s), lease_until)

    def _spawn_attempt(self, job: Job, lease_until: float) -> None:
        # An old attempt may still run here if this process was suspended until its lease expired.
        self.stop(job.id)
        attempt = self._running[job.id] = self._make_attempt(job, lease_until)
        task = attempt.task = asyncio.create_task(self._run_and_store(attempt))
        task.add_done_callback(lambda task: self._on_done(attempt, task))
        self._on_change(job)

    def _on_done(self, attempt: _Attempt, task: asyncio.Task[None]) -> None:
        if self._running.get(attempt.job.id) is attempt:
            del self._running[attempt.job.id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("job %s: the attempt crashed", attempt.job.id, exc_info=error)
        self.wake()

    async def _run_and_store(self, attempt: _Attempt) -> None:
        job = attempt.job
        current_request_id.set(job.id)
        self._metrics.record_start(job.type, job.id, job.attempts)
        code = "canceled"
        try:
            transition, code = await self._run(attempt)
        finally:
            attempt.reporter.stop()
            self._metrics.record_attempt(job.type, code)
        try:
            result = await self._store_result(attempt, transition)
        except RaylensError as error:
            logger.warning("job %s: the result could not be stored: %s", job.id, error)
            self._interrupted[job.id] = attempt
            return
        if isinstance(result, Job):
            self._record_and_notify(result)
        else:
            logger.warning(
                "job %s: the result is discarded, because the job was canceled or its lease was "
                "lost",
                job.id,
            )

    async def _run(self, attempt: _Attempt) -> tuple[Transition, str]:
        """Run one attempt.

        Return the transition to apply to the job, and the code to record in the metrics: ``ok`` or
        an error's code.
        """
        job, reporter = attempt.job, attempt.reporter
        timeout_s = max(0.0, attempt.ends_at - self._clock.now())
        work = self._runner.run(job, timeout_s, reporter)
        try:
            output = to_json(await run_in_time(work, timeout_s))
            reporter.check()
        except RaylensError as error:
            return self._failure(attempt, error), error.code
        self._breakers.record_capacity(job.model)
        return (lambda stored: succeed(stored, output, self._clock.now())), "ok"

    def _failure(self, attempt: _Attempt, error: RaylensError) -> Transition:
        """Return the transition of a failed attempt, and record what it says of capacity."""
        job, reporter = attempt.job, attempt.reporter
        logger.info("job %s, attempt %d: %s: %s", job.id, job.attempts, error.code, error.message)
        if error.failure_class is not FailureClass.CAPACITY:
            self._breakers.record_capacity(job.model)
        elif error.model is not None:
            self._breakers.record_failure(error.model, error.retry_after, self._clock.now())
        reporter.discard_invalid()
        policy = self._retry_policy
        return lambda stored: end_failed_attempt(stored, error, policy, self._clock.now())

    async def _store_result(
        self, attempt: _Attempt, transition: Transition
    ) -> Job | RaylensError | None:
        """Store a result, and retry while the store fails.

        The retries end with the attempt's time, or if the lease can't be renewed, which cancels the
        attempt. A result that can't be stored for another reason fails the job.
        """
        give_up_at = max(attempt.ends_at, self._clock.now() + self._config.lease_s)
        has_failed = False
        while True:
            try:
                return await self._store_transition(attempt, transition)
            except RaylensError:
                if self._clock.now() >= give_up_at:
                    raise
                await asyncio.sleep(RESULT_RETRY_S)
            except Exception as error:
                if has_failed:
                    raise
                has_failed = True
                logger.exception("job %s: the result can't be stored", attempt.job.id)
                attempt.reporter.discard()
                transition = self._unstorable(error)

    async def _store_transition(
        self, attempt: _Attempt, transition: Transition
    ) -> Job | RaylensError | None:
        def update(stored: Job) -> JobUpdate:
            reported = attempt.reporter.add_to(JobUpdate(stored))
            ended = self._with_deliveries(stored, transition(reported.job))
            return replace(
                reported, job=ended.job, deliveries=reported.deliveries + ended.deliveries
            )

        result: Job | RaylensError | None = await self._change_writer.submit(
            Change(attempt.job.id, update, attempt.job.fence)
        )
        return result

    def _unstorable(self, error: Exception) -> Transition:
        message = f"the result can't be stored: {type(error).__name__}; see the server's log"
        problem = Problem("internal_error", message)
        return lambda stored: fail(stored, problem, self._clock.now())

    def _record_and_notify(self, job: Job) -> None:
        if job.state.is_terminal:
            self._metrics.record_end(job.type, job.state, job.duration_s)
        self._on_change(job)

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_s / 3)
            until = self._clock.now() + self._config.lease_s
            fences = {job_id: attempt.job.fence for job_id, attempt in self._running.items()}
            renewed: set[str] | None = None
            try:
                async with asyncio.timeout(self._config.lease_s / 3):
                    renewed = await self._store.renew(fences, until) if fences else set()
            except (RaylensError, TimeoutError) as error:
                logger.warning("renewing leases failed: %s", error or type(error).__name__)
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
            is_near_end = attempt.lease_until - self._clock.now() < self._config.lease_s / 2
            if renewed is None and not is_near_end:
                continue
            logger.warning(
                "job %s: the attempt stops, because its lease is lost or about to expire", job_id
            )
            attempt.stop()
            if renewed is None:
                self._interrupted[job_id] = attempt
