"""The interface of a job type, and what an attempt can use while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import StringConstraints

from raylens.core.config import JobsConfig
from raylens.core.errors import InvalidRequest, Overloaded
from raylens.core.types import PictureFile, Task
from raylens.jobs.blobs import PREFIX, BlobMissing, Blobs
from raylens.jobs.inference import Answer, InferenceClient, Options, ResolvedOptions
from raylens.jobs.job import Job, Progress
from raylens.jobs.llm import LanguageModel

Picture = Annotated[str, StringConstraints(pattern=r"^blob:[0-9a-f]{64}$")]
"""A picture in a stored input: the reference to its blob."""


class JobInput(Options):
    """The stored input of a job. Each job type subclasses it.

    A sender puts pictures under ``image``, ``images`` or OpenAI's ``image_url``. Before the input
    is validated, each one is stored and replaced by its :data:`Picture` reference. The fields
    ``webhook_url``, ``webhook_secret`` and ``timeout_s`` belong to every job and are removed.
    """


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job: the job, and what its type may use to run it."""

    job: Job
    deadline: float
    """When the attempt must have ended, in seconds since the epoch."""
    config: JobsConfig
    inference: InferenceClient
    blobs: Blobs
    llm: LanguageModel | None
    """The language model of ``jobs.llm``, if one is configured."""
    save_progress: Callable[[Progress, dict[str, Any] | None], Awaitable[None]]

    async def load_picture(self, reference: str, field: str) -> PictureFile:
        """Load a picture of the job. ``field`` is its path in the input, for error messages.

        Raises ``InvalidRequest`` if the blob is missing, and ``Overloaded`` if it can't be read.
        """
        try:
            data = await self.blobs.get_async(reference.removeprefix(PREFIX))
        except BlobMissing as error:
            raise InvalidRequest(
                f"{field}: the stored picture is missing: {error}", field
            ) from None
        except OSError as error:
            message = f"{field}: reading the stored picture failed: {type(error).__name__}"
            raise Overloaded(message, field) from error
        return PictureFile(data, field)

    async def ask(
        self, options: ResolvedOptions, task: Task, pictures: Sequence[PictureFile] = ()
    ) -> Answer:
        """Return a model's answer to a task. Raises any of :mod:`raylens.core.errors`.

        An error that :meth:`JobType.run` raises ends the attempt. If the error is retryable, the
        job is retried; otherwise it fails.
        """
        return await self.inference.ask(self.job.id, self.deadline, options, task, pictures)

    async def report(self, done: int, total: int, partial: dict[str, Any] | None = None) -> None:
        """Report progress: ``done`` of ``total`` steps.

        ``partial`` is stored as the job's output so far. If this attempt fails, the next one finds
        it in ``job.output``.
        """
        await self.save_progress(Progress(done, total), partial)


class JobType(Protocol):
    """A type of job: its name in requests, the model of its input, and its work."""

    @property
    def name(self) -> str: ...

    @property
    def input_model(self) -> type[JobInput]: ...

    async def run(self, job_input: Any, context: JobContext) -> dict[str, Any]:
        """Return the job's output, as JSON. ``job_input`` is an instance of ``input_model``.

        It may be called again after an attempt that failed or whose process died.
        """
        ...
