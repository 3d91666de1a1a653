"""The interface of a job type, and what an attempt can use while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import StringConstraints

from raylens.core.config import JobsConfig
from raylens.core.errors import InvalidRequest, Overloaded
from raylens.core.types import PictureFile, Task
from raylens.jobs.blobs import REFERENCE_PREFIX, BlobMissing, BlobStorage
from raylens.jobs.inference import Answer, InferenceClient, InferenceOptions, ResolvedOptions
from raylens.jobs.job import Job, Progress
from raylens.jobs.llm import LanguageModel

PictureReference = Annotated[str, StringConstraints(pattern=r"^blob:[0-9a-f]{64}$")]
"""What stands for a picture in a stored input: the reference to its blob."""


class JobInput(InferenceOptions):
    """The stored input of a job. Each job type subclasses it.

    A client puts pictures under ``image``, ``images`` or OpenAI's ``image_url``. Before the input
    is validated, each picture is replaced by its :data:`PictureReference`. The fields
    ``webhook_url``, ``webhook_secret`` and ``timeout_s`` are not part of the input: they are moved
    to the job.
    """


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job: the job, and what its type may use to run it."""

    job: Job
    attempt_deadline: float
    """When the attempt must have ended, in seconds since the epoch, on this machine's clock."""
    config: JobsConfig
    inference: InferenceClient
    blobs: BlobStorage
    llm: LanguageModel | None
    """The language model of ``jobs.llm``, if one is configured."""
    save_progress: Callable[[Progress, dict[str, Any] | None], Awaitable[None]]
    """Used by :meth:`report`. Job types call :meth:`report` instead of this."""

    async def load_picture(self, reference: str, field: str) -> PictureFile:
        """Load a picture of the job. ``field`` is its path in the input, for error messages.

        Raises ``InvalidRequest`` if the blob is missing, and ``Overloaded`` if it can't be read.
        """
        try:
            data = await self.blobs.get_async(reference.removeprefix(REFERENCE_PREFIX))
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
        """Return a model's answer to a task. Raises any of :mod:`raylens.core.errors`."""
        return await self.inference.ask(self.job.id, self.attempt_deadline, options, task, pictures)

    async def report(self, done: int, total: int, partial: dict[str, Any] | None = None) -> None:
        """Report progress: ``done`` of ``total`` steps.

        ``partial`` is the job's output so far. Reports in quick succession may be dropped. If this
        attempt fails, the next one finds the last stored ``partial`` in ``job.output``.
        """
        await self.save_progress(Progress(done, total), partial)


class JobType(Protocol):
    """A type of job: its name in requests, the Pydantic model of its input, and its work."""

    @property
    def name(self) -> str: ...

    @property
    def input_model(self) -> type[JobInput]: ...

    async def run(self, job_input: Any, context: JobContext) -> dict[str, Any]:
        """Return the job's output, as JSON. ``job_input`` is an instance of ``input_model``.

        An error ends the attempt: the job is retried if the error is retryable, and fails
        otherwise. This method may be called again after an attempt that failed or whose process
        died.
        """
        ...
