"""The interface of a job type, and what an attempt can use while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, Protocol

from pydantic import StringConstraints

from raylens.core.config import JobsConfig
from raylens.core.errors import InvalidRequest
from raylens.core.types import MediaFile, PictureFile, Task
from raylens.core.wire import MediaUrl
from raylens.jobs.blobs import REFERENCE_PREFIX, BlobMissing, BlobStorage, is_reference
from raylens.jobs.clock import Clock
from raylens.jobs.failures import InvalidOutput
from raylens.jobs.inference import Answer, InferenceClient, InferenceOptions, ResolvedOptions
from raylens.jobs.job import Job, Progress
from raylens.jobs.job_files import JobFiles
from raylens.jobs.llm import LanguageModel
from raylens.jobs.progress import Reporter

ENDLESS_S = 100 * 365 * 86_400.0
"""The time to the deadline of a job that has no end, in seconds."""
LastEvent = tuple[str, dict[str, Any]]
"""The name of an event, and its data."""
PictureReference = Annotated[str, StringConstraints(pattern=r"^blob:[0-9a-f]{64}$")]
"""What stands for a picture or video in a stored input: the reference to its blob."""


class JobInput(InferenceOptions):
    """The stored input of a job. Each job type subclasses it.

    A client puts pictures under ``image``, ``images`` or OpenAI's ``image_url``, and videos under
    ``video`` or ``video_url``. Before the input is validated, each picture and video is replaced by
    its :data:`PictureReference`. The fields
    ``webhook_url``, ``webhook_secret`` and ``timeout_s`` are not part of the input: they are moved
    to the job.
    """

    @classmethod
    def with_pictures(
        cls, references: Sequence[str], taken_at: Sequence[float | None]
    ) -> dict[str, Any]:
        """Return the fields of an input whose pictures come from a source.

        ``taken_at`` are the pictures' times in seconds since the epoch, as far as they are known.
        Raises ``InvalidRequest`` if the type takes none, or another number of them.
        """
        if "images" in cls.model_fields:
            return {"images": list(references)}
        if "image" not in cls.model_fields:
            raise InvalidRequest("query.ids: not supported by jobs of this type", "query.ids")
        if len(references) != 1:
            message = f"query.ids: {len(references)} pictures; jobs of this type take one"
            raise InvalidRequest(message, "query.ids", 1, len(references))
        return {"image": references[0]}

    def text_lengths(self) -> dict[str, int]:
        """Return the number of characters of text in each field."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        return {name: _count_chars(value) for name, value in fields.items()}


def _count_chars(value: Any) -> int:
    """Return the number of characters of all texts in a value, except for pictures' references."""
    if isinstance(value, str):
        return 0 if is_reference(value) else len(value)
    if isinstance(value, dict):
        return sum(map(_count_chars, value.values()))
    if isinstance(value, list):
        return sum(map(_count_chars, value))
    return 0


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job: the job, and what its type may use to run it."""

    job: Job
    ends_at: float
    """When the attempt must have ended, on the monotonic clock."""
    config: JobsConfig
    clock: Clock
    inference: InferenceClient
    blobs: BlobStorage
    files: JobFiles
    llm: LanguageModel | None
    """The language model of ``jobs.llm``, if one is configured."""
    reporter: Reporter
    """Used by :meth:`report` and :meth:`deliver`. Job types call these."""

    @property
    def seconds_left(self) -> float:
        """The seconds until the attempt must have ended."""
        return self.ends_at - self.clock.monotonic()

    @property
    def attempt_deadline(self) -> float:
        """When the attempt must have ended, in seconds since the epoch, on this machine's clock as
        it is set now."""
        return self.clock.time() + self.seconds_left

    async def load_picture(self, reference: str, field: str) -> PictureFile:
        """Load a picture of the job. ``field`` is its path in the input, for error messages.

        Raises ``InvalidRequest`` if the blob is missing, and ``StoreUnavailable`` if it can't be
        read.
        """
        return PictureFile(await self._read_blob(reference, field), field)

    async def load(self, media: MediaUrl) -> MediaFile:
        """Load a picture or video of the job, whose URL is a reference.

        Raises as :meth:`load_picture` does.
        """
        data = await self._read_blob(media.url, media.field)
        return media.to_file(data)

    async def _read_blob(self, reference: str, field: str) -> bytes:
        try:
            return await self.blobs.get_async(reference.removeprefix(REFERENCE_PREFIX))
        except BlobMissing:
            raise InvalidRequest(f"{field}: the stored file is missing", field) from None

    async def ask(
        self,
        options: ResolvedOptions,
        task: Task,
        files: Sequence[MediaFile] = (),
        deadline: float | None = None,
    ) -> Answer:
        """Return a model's answer to a task. Raises any of :mod:`raylens.core.errors`.

        ``deadline`` is in the unit of ``attempt_deadline``, the default.
        """
        deadline = self.attempt_deadline if deadline is None else deadline
        return await self.inference.ask(self.job.id, deadline, options, task, files)

    async def report(
        self,
        done: int,
        total: int,
        partial: dict[str, Any] | None = None,
        at_once: bool = False,
    ) -> None:
        """Report progress: ``done`` of ``total`` steps, as integers.

        ``partial`` is the job's output so far, as JSON. Of reports in quick succession, only the
        last one is stored, unless ``at_once`` is true. If this attempt fails, the next one finds
        that ``partial`` in ``job.output``. ``max_attempts`` bounds the attempts that come no
        further than an earlier one.

        Raises ``InvalidOutput`` if the steps are no integers.
        """
        await self.reporter.report(_progress(done, total), partial, at_once)

    async def deliver(
        self,
        event: str,
        data: dict[str, Any],
        done: int,
        total: int,
        partial: dict[str, Any],
        only_newest: bool = False,
    ) -> None:
        """Report as :meth:`report` does, and send an event to the job's webhook if it has one.

        With ``only_newest``, it replaces those of its name that were sent, or still wait. Both are
        durable when this returns: while the store is away, it waits. Raises ``Conflict`` if the
        attempt no longer counts, and ``InvalidOutput``.
        """
        await self.reporter.deliver(event, data, _progress(done, total), partial, only_newest)


def _progress(done: int, total: int) -> Progress:
    try:
        return Progress(int(index(done)), int(index(total)))
    except TypeError:
        raise InvalidOutput("progress: expected integers", "progress") from None


class JobType(Protocol):
    """A type of job: its name in requests, the Pydantic model of its input, and its work."""

    retries_units: bool = False
    """Whether the type retries its pictures one by one, with
    :class:`raylens.jobs.types.units.UnitRunner`.

    If so, a timeout applies to each picture instead of the attempt, and a broken picture is
    accepted: it becomes an error of its own in the output.
    """
    asks_once: bool = False
    """Whether all pictures go into one request to a model, so that ``limits.max_images`` applies
    instead of ``jobs.max_images``."""

    is_endless: bool = False
    """Whether a job runs until it is canceled."""

    capability: str | None = None
    """A task that not every model can do, if the type needs one: its name in
    :attr:`raylens.core.types.ModelInfo.tasks`."""

    @property
    def name(self) -> str: ...

    @property
    def input_model(self) -> type[JobInput]: ...

    def timeout(self, job: Job) -> float | None:
        """Return the seconds from the requeue of a job to its deadline; None for
        ``jobs.timeout_s``."""
        return None

    def last_events(self, job: Job) -> tuple[dict[str, Any] | None, list[LastEvent]]:
        """Return the output of a job that is about to be canceled, and what its webhook is told
        before that."""
        return job.output, []

    async def run(self, job_input: Any, context: JobContext) -> dict[str, Any]:
        """Return the job's output, as JSON. ``job_input`` is an instance of ``input_model``.

        An error ends the attempt. The error's :class:`raylens.core.errors.FailureClass` says
        whether the job waits for capacity, makes another attempt, or fails; an exception that is
        not from :mod:`raylens.core.errors` is transient. This method may be called again after an
        attempt that failed or whose process died.
        """
        ...
