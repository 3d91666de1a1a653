"""The job queue, called from another process: :class:`raylens.jobs.ports.JobService` over the
queue's actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError

from raylens.core.errors import ModelFailed, Overloaded, RaylensError
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import Delivery, Job, JobState, Stats

NAME = "jobs"
"""Of the actor, among the ingress's."""
PATIENCE_S = 20.0
"""A queue that has died is back within seconds: a call waits for it, and is made again."""
PAUSE_S = 0.25
CALL_S = 60.0
SMALL = 64 * 1024
"""Bytes of pictures of a job that may share a call with others."""
MAX_TOGETHER = 32
Submission = tuple[Job, Mapping[str, bytes]]


class RemoteJobs:
    """Every method of the queue may be called twice, so a call that an actor's death has cut off is
    made again."""

    def __init__(self) -> None:
        self._actor: Any = None
        # A call costs more than a small job: those that come together go together.
        self._small: GroupCommit[Submission, Job | RaylensError] = GroupCommit(
            self._submit_all, MAX_TOGETHER
        )

    async def _submit_all(self, submissions: list[Submission]) -> list[Job | RaylensError]:
        return await self._call("submit_all", submissions)

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.submit`."""
        if sum(map(len, pictures.values())) > SMALL:
            return await self._call("submit", job, dict(pictures))
        result = await self._small((job, pictures))
        if isinstance(result, RaylensError):
            raise result
        return result

    async def get(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.get`."""
        return await self._call("get", job_id)

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        """Implements :meth:`raylens.jobs.ports.JobService.page`."""
        return await self._call("page", frozenset(states), limit, before)

    async def cancel(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.cancel`."""
        return await self._call("cancel", job_id)

    async def retry(self, job_id: str) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.retry`."""
        return await self._call("retry", job_id)

    async def stats(self) -> Stats:
        """Implements :meth:`raylens.jobs.ports.JobService.stats`."""
        return await self._call("stats")

    async def watch(self, job_id: str, seen: Job | None, patience_s: float) -> Job:
        """Implements :meth:`raylens.jobs.ports.JobService.watch`."""
        return await self._call("watch", job_id, seen, patience_s)

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """Implements :meth:`raylens.jobs.ports.JobService.deliveries`."""
        return await self._call("deliveries", job_id)

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Implements :meth:`raylens.jobs.ports.JobService.redeliver`."""
        return await self._call("redeliver", job_id, number)

    async def _call(self, method: str, *arguments: Any) -> Any:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self._actor is None:
                    self._actor = await asyncio.to_thread(serve.get_deployment_actor, NAME)
                async with asyncio.timeout(CALL_S):
                    return await self._actor.call.remote(method, *arguments)
            except TimeoutError as error:
                raise Overloaded(
                    f"the job queue didn't answer within {CALL_S:g} s", retry_after=5
                ) from error
            except RayTaskError as error:
                raise _ours(error) from error
            except (RayActorError, ValueError) as error:  # it has died, or isn't there yet
                self._actor = None
                if time.monotonic() >= until:
                    raise Overloaded("the job queue can't be reached", retry_after=5) from error
            except RayError as error:
                raise Overloaded(
                    f"the job queue can't be reached ({type(error).__name__})", retry_after=5
                ) from error
            await asyncio.sleep(PAUSE_S)


def _ours(error: RayTaskError) -> RaylensError:
    if isinstance(error.cause, RaylensError):
        return error.cause
    return ModelFailed(f"the job queue failed on this request: {type(error.cause).__name__}")
