"""The worker pool of the commands for many pictures: one job per picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raylens.cli.client import CANCELED, FAILED, SUCCEEDED, TERMINAL, Client, Job
from raylens.cli.errors import StatusError, Unreachable
from raylens.cli.job_waiter import JobWaiter
from raylens.cli.results import Result
from raylens.cli.tasks import EncodedJob, PictureError, Task, encode_job

MAX_UPLOADS = 4
"""Pictures that are held in memory at a time, however many jobs are in flight."""
MAX_SUBMISSIONS = 3
"""Submissions of one picture. A server whose store was replaced has lost its jobs."""
_PICTURE_STATUSES = frozenset({409, 413, 415, 422, 500})
"""HTTP statuses of errors that may concern one picture only."""


class Annotator:
    """A pool of workers that ask about pictures through the job queue.

    ``on_result`` receives each result as soon as its job ends. ``retry_failed``: retry a job once
    if an earlier run left it failed or canceled.
    """

    def __init__(
        self,
        client: Client,
        task: Task,
        retry_failed: bool,
        on_result: Callable[[Result], None],
    ) -> None:
        self._client = client
        self._waiter = JobWaiter(client)
        self._task = task
        self._retry_failed = retry_failed
        self._on_result = on_result
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)
        self._retried_ids: set[str] = set()

    async def annotate_all(self, pictures: Iterable[Path], in_flight: int) -> None:
        """Ask about all pictures, ``in_flight`` at a time.

        Raises ``ClientError`` if an error concerns more than one picture, and whatever
        ``on_result`` raises.
        """
        queue = iter(pictures)
        try:
            async with self._waiter, asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(self._work(queue))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, queue: Iterator[Path]) -> None:
        for picture in queue:
            self._on_result(await self._annotate(picture))

    async def _annotate(self, picture: Path) -> Result:
        """Return a picture's result.

        Raises ``ClientError`` if the error concerns the other pictures too.
        """
        file = str(picture)
        try:
            job, size = await self._run_job(picture)
        except PictureError as error:
            return _failure(file, error.code, str(error))
        except StatusError as error:
            if error.status not in _PICTURE_STATUSES or _is_about_all(error):
                raise
            return _failure(file, f"http_{error.status}", str(error))
        except Unreachable as error:
            if not error.server_is_up:
                raise
            return _failure(file, "connection_lost", str(error))
        return self._to_result(file, job, size)

    async def _run_job(self, picture: Path) -> tuple[Job, tuple[int, int] | None]:
        """Submit a picture, again if the server loses the job.

        Return the job at its end, and the picture's size.
        """
        for _ in range(MAX_SUBMISSIONS):
            job, size = await self._submit(picture)
            try:
                return await self._finish(job), size
            except StatusError as error:
                if error.status != 404:
                    raise
        raise PictureError("job_not_found", f"the server lost the job {MAX_SUBMISSIONS} times")

    async def _submit(self, picture: Path) -> tuple[Job, tuple[int, int] | None]:
        async with self._uploads:
            encoded: EncodedJob = await asyncio.to_thread(encode_job, picture, self._task)
            return await self._client.submit(encoded.body, encoded.key), encoded.size

    async def _finish(self, job: Job) -> Job:
        """Wait until a job ends, and return it. Retry it first if it is due for a retry."""
        if self._should_retry(job):
            job = await self._retry(job["id"])
        return job if job["status"] in TERMINAL else await self._waiter.wait_for_end(job["id"])

    def _should_retry(self, job: Job) -> bool:
        has_failed = job["status"] in (FAILED, CANCELED)
        return self._retry_failed and has_failed and job["id"] not in self._retried_ids

    async def _retry(self, job_id: str) -> Job:
        # Pictures with the same bytes share a job, which is retried once.
        self._retried_ids.add(job_id)
        try:
            return await self._client.retry(job_id)
        except StatusError as error:
            if error.status != 409:
                raise
            refusal = error
        job = await self._client.get(job_id)
        if job["status"] in (FAILED, CANCELED):
            # The server no longer has its pictures. Without the job, the picture is sent again.
            await self._client.delete(job_id)
            raise StatusError(404, str(refusal))
        return job  # another client has just retried it

    def _to_result(self, file: str, job: Job, size: tuple[int, int] | None) -> Result:
        """Return the result of a job that has ended."""
        if job["status"] == SUCCEEDED:
            output = job["output"]
            answer = output[self._task.answer_key]
            return Result(file, answer, output.get("model"), job_id=job["id"], size=size)
        error = job["error"] if job["status"] == FAILED else None
        if not error:
            return _failure(file, job["status"], f"the job was {job['status']}", job["id"])
        return _failure(file, error["code"], error["message"], job["id"])


def _is_about_all(error: StatusError) -> bool:
    """Whether the error names a field that is the same for every picture: it would recur."""
    field = str(error).partition(":")[0]
    return field == "job_type" or (field.startswith("input.") and field != "input.image")


def _failure(file: str, code: str, message: str, job_id: str | None = None) -> Result:
    return Result(file, error={"code": code, "message": message}, job_id=job_id)
