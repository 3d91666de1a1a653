"""The queue: submissions in, results and webhooks out, over one store. One of it runs in one actor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from raylens.core.config import JobsConfig
from raylens.core.errors import Conflict, Overloaded, QueueFull, RaylensError, UnknownJob
from raylens.jobs.blobs import Blobs
from raylens.jobs.dispatcher import Dispatcher, Save
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Delivery, Job, JobState, Stats
from raylens.jobs.llm import make_llm
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.store import Change, JobStore, Transition
from raylens.jobs.transitions import cancel, retry, stamp_arrival
from raylens.jobs.types.base import JobType, Run
from raylens.jobs.webhook_dispatcher import Sender, WebhookDispatcher
from raylens.jobs.webhooks import STARTED, delivery

logger = logging.getLogger(__name__)

JANITOR_PERIOD_S = 60.0
GAUGE_PERIOD_S = 1.0
SWEEP = 200
"""Jobs that are removed in one transaction."""
FEW = 10
"""The same of blobs: each may be a call to another server, and the store waits for it."""
BLOB_GRACE_S = 3600.0
"""A blob whose job hasn't come so long after it won't."""
WATCH_POLL_S = 1.0
"""Another process may run a job that is watched here."""
SAMPLE = 1000
"""Jobs that the statistics' seconds are taken from."""
LONGEST_RETRY_AFTER_S = 60.0
TROUBLE_S = 5.0
"""Until a job that couldn't be stored is worth sending again."""


class JobQueue:
    """Implements :class:`raylens.jobs.ports.JobService`. ``serve`` does the work."""

    def __init__(
        self,
        store: JobStore,
        blobs: Blobs,
        types: Mapping[str, JobType],
        inference: InferenceClient,
        sender: Sender,
        secrets: Sequence[str],
        config: JobsConfig,
        metrics: JobMetrics | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._types = types
        self._inference = inference
        self._llm = make_llm(config.llm, inference)
        self._config = config
        self._metrics = metrics or JobMetrics()
        self._skew = 0.0
        self._adds: GroupCommit[Job, Job | RaylensError] = GroupCommit(
            lambda jobs: store.add(jobs, config.capacity)
        )
        self._changes: GroupCommit[Change, Job | RaylensError | None] = GroupCommit(store.change)
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._recent_s = 1.0
        owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._dispatcher = Dispatcher(
            store,
            self._changes,
            self._work,
            config,
            owner,
            self.now,
            self._announced,
            self._changed,
            self._metrics,
        )
        self._webhook_dispatcher = WebhookDispatcher(
            store, sender, secrets, config.webhooks, self.now, self._metrics
        )

    def now(self) -> float:
        """Seconds since the epoch, by the store's clock."""
        return time.time() + self._skew

    async def open(self) -> None:
        """Opens the store. Raises ``StoreUnusable``, or ``StoreUnreachable``."""
        await self._store.open()
        self._skew = await self._store.skew()

    async def serve(self) -> None:
        """Runs jobs, delivers webhooks and cleans up, until it is canceled."""
        async with asyncio.TaskGroup() as group:
            for loop in (
                self._dispatcher.serve,
                self._webhook_dispatcher.serve,
                self._keep_clean,
                self._keep_gauges,
            ):
                group.create_task(loop())

    async def close(self) -> None:
        await self._store.close()

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.submit`."""
        job = stamp_arrival(job, self.now())
        if pictures:
            await self._check_capacity(job)
            await self._store.touch_blobs(pictures, self.now())
            await asyncio.gather(*(self._blobs.store(*picture) for picture in pictures.items()))
        added = await self._adds(job)
        if isinstance(added, RaylensError):
            raise self._with_patience(added)
        self._dispatcher.wake()
        return added

    async def submit_all(
        self, submissions: Sequence[tuple[Job, Mapping[str, bytes]]]
    ) -> list[Job | RaylensError]:
        """The same for several; each one's own result, or its own error."""

        async def one(job: Job, pictures: Mapping[str, bytes]) -> Job | RaylensError:
            try:
                return await self.submit(job, pictures)
            except RaylensError as error:
                return error
            except Exception:
                logger.exception("job %s can't be stored", job.id)
                return Overloaded(
                    "the job can't be stored; the server's log tells more", retry_after=TROUBLE_S
                )

        return list(await asyncio.gather(*(one(*submission) for submission in submissions)))

    async def get(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.get`."""
        return _known(await self._store.get(job_id), job_id)

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        """Implements :meth:`raylens.jobs.ports.JobService.page`."""
        return await self._store.page(states, limit, before)

    async def cancel(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.cancel`."""

        def apply(job: Job) -> Transition:
            # To be told twice is as good as once.
            return (
                Transition(job)
                if job.state is JobState.CANCELED
                else self._announced(cancel(job, self.now()))
            )

        job = await self._change(job_id, apply)
        self._dispatcher.drop(job_id)
        return job

    async def retry(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.retry`."""
        await self._check_capacity(None)
        config = self._config
        return await self._change(
            job_id,
            lambda job: Transition(retry(job, self.now(), config.max_attempts, config.timeout_s)),
        )

    async def stats(self) -> Stats:
        """Implements :meth:`raylens.jobs.ports.JobService.stats`."""
        counts, durations = await asyncio.gather(
            self._store.counts(), self._store.durations(SAMPLE)
        )
        mean = statistics.fmean(durations) if durations else None
        p95 = sorted(durations)[(len(durations) * 95 - 1) // 100] if durations else None
        return Stats(counts, self._config.capacity, self._config.workers, mean, p95)

    async def watch(self, job_id: str, seen: Job | None, patience_s: float) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.watch`."""
        until = time.monotonic() + patience_s
        event = asyncio.Event()
        self._watchers[job_id].add(event)
        try:
            while True:
                event.clear()
                job = await self.get(job_id)
                left = until - time.monotonic()
                if seen is None or _visible(job) != _visible(seen) or left <= 0:
                    return job
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, WATCH_POLL_S)):
                        await event.wait()
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """Implements :meth:`raylens.jobs.ports.JobService.deliveries`."""
        await self.get(job_id)
        return await self._store.deliveries(job_id)

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Implements :meth:`raylens.jobs.ports.JobService.redeliver`."""
        await self.get(job_id)
        found = await self._store.redeliver(job_id, number, self.now())
        if found is None:
            raise UnknownJob(f"delivery: job {job_id} has none of number {number}", "delivery")
        self._webhook_dispatcher.wake()
        return found

    async def _work(self, job: Job, deadline: float, save: Save) -> dict[str, Any]:
        """An attempt at a job, by its type."""
        kind = self._types.get(job.type)
        if kind is None:
            raise Overloaded(f"job_type: no {job.type!r} is installed here any more", "job_type")
        given = kind.input_model.model_validate(job.input)
        return await kind.run(
            given, Run(job, deadline, self._config, self._inference, self._blobs, self._llm, save)
        )

    def _announced(self, job: Job) -> Transition:
        """A job's new state with the delivery that tells its webhook."""
        if job.state is JobState.RUNNING and not self._config.webhooks.started:
            return Transition(job)
        base = self._config.webhooks.public_url.rstrip("/")
        made = delivery(job, self.now(), f"{base}/api/v1/jobs/{job.id}")
        if made is None or (made.event == STARTED and job.attempts > 1):
            return Transition(job)
        return Transition(job, (made,))

    def _changed(self, job: Job) -> None:
        for event in self._watchers.get(job.id, ()):
            event.set()
        if job.webhook is not None:
            self._webhook_dispatcher.wake()
        if job.state is JobState.SUCCEEDED and job.seconds is not None:
            self._recent_s += (job.seconds - self._recent_s) / 20

    async def _change(self, job_id: str, apply: Any) -> Job:
        """A change from outside, whoever runs the job."""
        changed = await self._changes(Change(job_id, apply))
        if isinstance(changed, RaylensError):
            raise changed
        job = _known(changed, job_id)
        self._changed(job)
        self._dispatcher.wake()
        return job

    async def _check_capacity(self, job: Job | None) -> None:
        """Raises ``QueueFull`` before anything is written; a job that is known already needs no
        room."""
        capacity = self._config.capacity
        if await self._store.waiting(capacity) < capacity:
            return
        known = job and (await self._store.add([job], 0))[0]
        if isinstance(known, Conflict):
            raise known
        if not isinstance(known, Job):
            raise self._with_patience(
                QueueFull(f"{capacity} jobs wait; the limit is {capacity}", "jobs.capacity")
            )

    def _with_patience(self, error: RaylensError) -> RaylensError:
        """The error with a guess of when there will be room: when a worker will have taken the next
        job."""
        if not isinstance(error, QueueFull):
            return error
        wait = min(LONGEST_RETRY_AFTER_S, max(1.0, self._recent_s / self._config.workers))
        return QueueFull(error.message, error.field, error.limit, error.actual, wait)

    async def _keep_clean(self) -> None:
        """Removes jobs whose time is over, and blobs that no job needs."""
        while True:
            with _logged("the store can't be cleaned"):
                while (
                    await self._store.purge(self.now() - self._config.result_ttl_s, SWEEP) == SWEEP
                ):
                    await asyncio.sleep(0)
                before = self.now() - BLOB_GRACE_S
                while await self._store.collect_blobs(before, FEW, self._remove) == FEW:
                    await asyncio.sleep(0)
                self._skew = await self._store.skew()
            await asyncio.sleep(JANITOR_PERIOD_S)

    def _remove(self, digest: str) -> None:
        """A blob that can't be removed is left behind, and in the log: others shall not wait for
        it."""
        try:
            self._blobs.remove(digest)
        except Exception:
            logger.exception("blob %s can't be removed, and is left behind", digest)

    async def _keep_gauges(self) -> None:
        while True:
            with _logged("the store can't be counted"):
                self._metrics.queue(await self._store.counts())
            await asyncio.sleep(GAUGE_PERIOD_S)


class _logged(suppress):
    """Suppresses an error, and leaves it in the log: the next round may do better."""

    def __init__(self, what: str) -> None:
        super().__init__(Exception)
        self._what = what

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        caught = super().__exit__(kind, error, traceback)
        if caught and error is not None:
            logger.error(self._what, exc_info=error)
        return bool(caught)


def _known(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise UnknownJob(f"job_id: {job_id[:64]!r} is not here (any more)", "job_id")
    return job


def _visible(job: Job) -> tuple[object, ...]:
    """What a watcher is told of."""
    return job.state, job.attempts, job.progress, job.problem
