"""What a type of job is, and what it may do while it runs."""

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
from raylens.jobs.llm import Llm

Picture = Annotated[str, StringConstraints(pattern=r"^blob:[0-9a-f]{64}$")]
"""In a stored input: a reference to the picture that was sent in this place."""


class JobInput(Options):
    """The input of a type of job, as it is stored.

    Pictures stand under ``image``, ``images`` or OpenAI's ``image_url``, and are :data:`Picture` by
    the time that the input is validated. ``webhook_url``, ``webhook_secret`` and ``timeout_s``
    belong to every job and are not seen here.
    """


@dataclass(frozen=True)
class Run:
    """One attempt at a job, for its type to work with."""

    job: Job
    deadline: float
    """Of the attempt."""
    config: JobsConfig
    inference: InferenceClient
    blobs: Blobs
    llm: Llm | None
    """Reads and words what was found, where one is configured."""
    save: Callable[[Progress, dict[str, Any] | None], Awaitable[None]]

    async def picture(self, reference: str, field: str) -> PictureFile:
        """A picture of the job's; ``field`` is where it stood in the input."""
        try:
            data = await self.blobs.load(reference.removeprefix(PREFIX))
        except BlobMissing as error:
            raise InvalidRequest(f"{field}: the stored picture is gone: {error}", field) from None
        except OSError as error:
            raise Overloaded(
                f"{field}: the stored picture can't be read ({type(error).__name__})", field
            ) from error
        return PictureFile(data, field)

    async def ask(
        self, options: ResolvedOptions, task: Task, pictures: Sequence[PictureFile] = ()
    ) -> Answer:
        """Raises any of :mod:`raylens.core.errors`: retryable ones lead to another attempt, others
        end the job."""
        return await self.inference.ask(self.job.id, self.deadline, options, task, pictures)

    async def report(self, done: int, total: int, partial: dict[str, Any] | None = None) -> None:
        """Tells how far the job is. ``partial`` is durable, and is the next attempt's
        ``job.output`` where this one dies."""
        await self.save(Progress(done, total), partial)


class JobType(Protocol):
    """A type of job: its name in requests, the shape of its input, and what it does."""

    @property
    def name(self) -> str: ...

    @property
    def input_model(self) -> type[JobInput]: ...

    async def run(self, given: Any, run: Run) -> dict[str, Any]:
        """The job's output, as JSON, for an input of its ``input_model``. May be called again after
        an attempt that died."""
        ...
