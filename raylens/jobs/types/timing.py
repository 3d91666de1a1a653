"""A job that finds when tasks start and end, from timestamped pictures.

A body-worn camera may take them, for example. A task here is an activity that the pictures may
show. What a model is asked to do, :class:`raylens.core.types.Task`, is imported as
``InferenceTask``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from raylens.core.config import MAX_JOB_PICTURES
from raylens.core.errors import RaylensError
from raylens.core.types import Caption, Length, PictureFile, Query
from raylens.core.types import Task as InferenceTask
from raylens.core.verdict import Verdict, parse_yes_or_no
from raylens.core.wire import Body, Text
from raylens.jobs.failures import should_retry
from raylens.jobs.inference import Answer, ResolvedOptions, with_greedy_sampling
from raylens.jobs.intervals import Interval, find_intervals
from raylens.jobs.types.base import JobContext, JobInput, JobType, PictureReference
from raylens.jobs.types.picture import error_as_json
from raylens.jobs.types.units import UnitAttempt, UnitRunner

QUESTION_PROMPT = "Task: {task}\nIs somebody doing this task in the picture? Answer yes or no."
INTERPRET_PROMPT = (
    "A picture is described so: {description}\n\n{question}\n"
    "Go by the description only. Answer yes or no."
)
SUMMARY_PROMPT = (
    "Pictures from a worn camera were looked at, one after the other, to find when tasks are"
    " done.\n\n"
    "Found:\n{summary}\n\nSeen, in order of time:\n{seen}\n\n"
    "Summarize in a few plain sentences what was done and when. Keep to these times."
)
ANSWER_TOKENS = 16
"""Longest answer to a yes-or-no question, in tokens. Only its first word is used."""
MAX_TIMESTAMP = 1e18
"""Largest numeric timestamp. Midpoints and differences of such numbers are finite."""
MAX_WARNINGS = 20
# The prompts must fit the context of a small language model.
MAX_DESCRIPTION_CHARS = 2000
"""Longest description in the prompt that interprets it."""
MAX_PROMPT_FRAMES = 32
"""Largest number of frames in the prompt for the summary."""
MAX_SUMMARY_INTERVALS = 10
"""Largest number of intervals that are listed for one task."""
MAX_LINE_CHARS = 120
"""Longest task or description in a line of the summary or of its prompt."""

T = TypeVar("T")
PromptText = Annotated[Text, Field(min_length=1, max_length=4000)]
TaskText = PromptText
"""A task, as a phrase or as a question."""
FrameCount = Annotated[int, Field(ge=1, le=50)]


class Frame(Body):
    """A picture, and the time at which it was taken.

    ``timestamp`` is a number of seconds or an ISO 8601 date-time. A date-time without an offset is
    in UTC.
    """

    image: PictureReference
    timestamp: float | str

    @field_validator("timestamp", mode="plain")
    @classmethod
    def _parse_timestamp(cls, value: Any) -> float | str:
        """Return a finite number, or a date-time in UTC."""
        if isinstance(value, str):
            return _to_utc(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _invalid_timestamp()
        # Compare before converting: an int may be too large for a float. NaN fails the comparison
        # too.
        if not -MAX_TIMESTAMP <= value <= MAX_TIMESTAMP:
            raise ValueError(f"expected a number from {-MAX_TIMESTAMP:g} to {MAX_TIMESTAMP:g}")
        return float(value)

    @property
    def time(self) -> float:
        """The timestamp in seconds; for a date-time, since the epoch."""
        if isinstance(self.timestamp, str):
            return datetime.fromisoformat(self.timestamp).timestamp()
        return self.timestamp


class TimingInput(JobInput):
    """One task as ``prompt``, or several as ``tasks``, and the frames in any order.

    ``vlm_prompt`` is the prompt for a frame's description. Without it, the description is a short
    caption. It takes ``enter`` consecutive frames that show a task to begin an interval, and
    ``leave`` that don't to end it: see :class:`raylens.core.hysteresis.Hysteresis`.
    """

    prompt: TaskText | None = None
    tasks: Annotated[list[TaskText], Field(min_length=1, max_length=16)] | None = None
    vlm_prompt: PromptText | None = None
    images: Annotated[list[Frame], Field(min_length=1, max_length=MAX_JOB_PICTURES)]
    enter: FrameCount = 2
    leave: FrameCount = 2

    @classmethod
    def with_pictures(
        cls, references: Sequence[str], taken_at: Sequence[float | None]
    ) -> dict[str, Any]:
        """The frames have the pictures' times, or if these say nothing, numbers in order."""
        times = list(taken_at)
        if None in times or len(set(times)) < len(times):
            times = list(range(len(references)))
        frames = zip(references, times, strict=True)
        return {"images": [{"image": image, "timestamp": time} for image, time in frames]}

    @field_validator("images")
    @classmethod
    def _check_timestamps(cls, images: list[Frame]) -> list[Frame]:
        index_by_time: dict[float, int] = {}
        for frame_index, frame in enumerate(images):
            if type(frame.timestamp) is not type(images[0].timestamp):
                message = "expected all timestamps to be numbers, or all to be date-times"
                raise _timestamp_error(frame_index, message)
            first_index = index_by_time.setdefault(frame.time, frame_index)
            if first_index != frame_index:
                message = f"same as the timestamp of images.{first_index}"
                raise _timestamp_error(frame_index, message)
        return images

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if (self.prompt is None) == (self.tasks is None):
            raise ValueError("prompt: expected exactly one of prompt and tasks")
        return self

    @property
    def task_texts(self) -> list[str]:
        """The text of each task."""
        return self.tasks or [self.prompt or ""]


class TaskTimingJob(JobType):
    """Finds the intervals in which each task is done.

    Output: ``{"tasks": [{"task", "intervals": [{"start", "end", "seconds"}]}], "summary",
    "evidence", "model"}`` and, if there are any, ``warnings``.

    ``evidence`` has one entry per frame, in order of time, with ``timestamp``, ``description`` and
    ``answers``. ``answers`` has one value per task: true, false, or null if unclear. A frame that
    fails also has an ``error``. Times are numbers or date-times, like the timestamps of the input.

    Finished entries are stored, and the next attempt makes only the missing ones. Until the job has
    ended, a missing entry is null, and ``attempts`` counts the failed attempts by frame.
    """

    name = "task_timing_v1"
    input_model = TimingInput
    retries_units = True

    async def run(self, job_input: TimingInput, context: JobContext) -> dict[str, Any]:
        attempt = _TimingAttempt(job_input, context)
        await attempt.ask_about_frames()
        await attempt.interpret_descriptions()
        return await attempt.make_output()


class _TimingAttempt:
    """One attempt. The units that it retries are frames, and later their unclear entries."""

    def __init__(self, job_input: TimingInput, context: JobContext) -> None:
        self._input = job_input
        self._context = context
        self._llm = context.llm
        self._options = with_greedy_sampling(context.inference.resolve(job_input))
        by_time = sorted(enumerate(job_input.images), key=lambda item: item[1].time)
        self._frames: list[tuple[int, Frame]] = by_time
        """The frames in order of time, each with its index in the input."""
        partial = context.job.output or {}
        evidence = [*partial.get("evidence", ()), *([None] * len(self._frames))]
        self._evidence: list[dict[str, Any] | None] = evidence[: len(self._frames)]
        """The entries in order of time. Each is replaced rather than modified, because the store
        may be writing the old one."""
        self._warnings: list[str] = list(partial.get("warnings", ()))
        self._llm_warning: str | None = None
        """Why the language model is no longer used."""
        # Two slots per frame: with one task, the description and the answer of every frame in
        # flight run at once. With more tasks, requests wait for a slot, so that they don't overflow
        # the model's queue.
        concurrency = context.config.image_batch_size
        self._request_slots = asyncio.Semaphore(2 * concurrency)
        self._frame_runner = UnitRunner(
            context,
            concurrency,
            partial.get("attempts", {}),
            self._ask_about_frame,
            self._finish_frame,
            self._report,
        )
        self._entry_runner = UnitRunner(
            context, concurrency, {}, self._interpret_entry, self._finish_entry, self._report
        )

    async def ask_about_frames(self) -> None:
        """Ask the vision model about each frame that has no evidence yet."""
        missing = [index for index, entry in enumerate(self._evidence) if entry is None]
        await self._frame_runner.run(missing)

    async def interpret_descriptions(self) -> None:
        """Ask the language model the questions whose answers are unclear.

        It answers from the descriptions.
        """
        if self._llm is None:
            return
        unclear = [
            index
            for index, entry in enumerate(self._entries)
            if entry["description"] and None in entry["answers"]
        ]
        await self._entry_runner.run(unclear)

    @property
    def _entries(self) -> list[dict[str, Any]]:
        """The entries that exist: after :meth:`ask_about_frames`, one for each frame."""
        return [entry for entry in self._evidence if entry is not None]

    async def make_output(self) -> dict[str, Any]:
        tasks = [
            {"task": text, "intervals": self._find_intervals(task_index)}
            for task_index, text in enumerate(self._input.task_texts)
        ]
        plain_summary = _summarize_tasks(tasks)
        seen = _summarize_evidence(self._entries)
        prompt = SUMMARY_PROMPT.format(summary=plain_summary, seen=seen)
        summary = await self._summarize(prompt)
        output = {
            "tasks": tasks,
            "summary": (summary or "").strip() or plain_summary,
            "evidence": self._entries,
            "model": self._options.model,
        }
        warnings = self._all_warnings()
        if warnings:
            output["warnings"] = warnings
        return output

    def _all_warnings(self) -> list[str]:
        warnings = list(self._warnings)
        failed = sum("error" in entry for entry in self._entries)
        if failed:
            warnings.append(f"{failed} of {len(self._evidence)} frames have an error")
        if self._llm_warning is not None:
            warnings.append(self._llm_warning)
        return warnings

    async def _report(self) -> None:
        partial = {
            "evidence": list(self._evidence),
            "warnings": list(self._warnings),
            "attempts": self._frame_runner.attempts_as_json,
        }
        await self._context.report(len(self._entries), len(self._frames), partial)

    async def _finish_frame(self, position: int, result: dict[str, Any] | RaylensError) -> None:
        if isinstance(result, RaylensError):
            _, frame = self._frames[position]
            result = self._make_entry(frame, result, [result] * len(self._input.task_texts))
        self._evidence[position] = result
        await self._report()

    async def _ask_about_frame(self, attempt: UnitAttempt) -> dict[str, Any]:
        """Return the entry of a frame, a unit by its position in time."""
        frame_index, frame = self._frames[attempt.unit]
        field = f"input.images.{frame_index}.image"
        picture = await self._context.load_picture(frame.image, field)
        describe: InferenceTask = Caption(Length.SHORT)
        if self._input.vlm_prompt is not None:
            describe = Query(self._input.vlm_prompt)
        short = _with_short_answer(self._options)
        questions = [Query(make_question(text)) for text in self._input.task_texts]
        description_reply, *task_replies = await _gather(
            [
                self._ask(self._options, describe, picture, attempt),
                *(self._ask(short, question, picture, attempt) for question in questions),
            ]
        )
        return self._make_entry(frame, description_reply, task_replies)

    async def _ask(
        self,
        options: ResolvedOptions,
        inference_task: InferenceTask,
        picture: PictureFile,
        attempt: UnitAttempt,
    ) -> Answer | RaylensError:
        """Return the answer, or the error that is this reply's result.

        Raises errors after which another attempt may succeed.
        """
        try:
            async with self._request_slots:
                return await self._context.ask(options, inference_task, [picture], attempt.deadline)
        except RaylensError as error:
            if should_retry(error, attempt.is_last):
                raise
            return error

    def _make_entry(
        self,
        frame: Frame,
        description_reply: Answer | RaylensError,
        task_replies: Sequence[Answer | RaylensError],
    ) -> dict[str, Any]:
        """Return a frame's entry in the evidence, and collect the warnings of its replies."""
        replies = [description_reply, *task_replies]
        for reply in replies:
            if isinstance(reply, Answer):
                self._add_warnings(reply.warnings)
        entry: dict[str, Any] = {
            "timestamp": frame.timestamp,
            "description": _text_of(description_reply),
            "answers": [parse_yes_or_no(_text_of(reply)) for reply in task_replies],
        }
        error = next((reply for reply in replies if isinstance(reply, RaylensError)), None)
        if error is not None:
            entry["error"] = error_as_json(error)
        return entry

    def _add_warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warnings and len(self._warnings) < MAX_WARNINGS:
                self._warnings.append(warning)

    async def _interpret_entry(self, attempt: UnitAttempt) -> dict[str, Any]:
        """Return an entry with its unclear answers resolved."""
        entry = self._entries[attempt.unit]
        verdicts = await _gather(
            self._interpret(entry["description"], task_index, verdict, attempt)
            for task_index, verdict in enumerate(entry["answers"])
        )
        return {**entry, "answers": verdicts}

    async def _finish_entry(self, index: int, result: dict[str, Any] | RaylensError) -> None:
        if isinstance(result, RaylensError):
            self._stop_using_llm(result)
        else:
            self._evidence[index] = result
        await self._report()

    async def _interpret(
        self, description: str, task_index: int, verdict: Verdict, attempt: UnitAttempt
    ) -> Verdict:
        """Return the verdict on one task.

        If ``verdict`` is unclear, ask the language model about the description.
        """
        if verdict is not None:
            return verdict
        question = make_question(self._input.task_texts[task_index])
        prompt = INTERPRET_PROMPT.format(
            description=description[:MAX_DESCRIPTION_CHARS], question=question
        )
        return parse_yes_or_no(await self._complete(prompt, attempt.deadline))

    async def _summarize(self, prompt: str) -> str | None:
        """Return the language model's summary, or None if it makes none.

        Raises an error after which another attempt may succeed, while attempts are left.
        """
        job, context = self._context.job, self._context
        deadline = context.clock.time() + context.config.attempt_timeout_s
        try:
            return await self._complete(prompt, min(deadline, context.attempt_deadline))
        except RaylensError as error:
            if should_retry(error, job.attempts >= job.max_attempts):
                raise
            self._stop_using_llm(error)
            return None

    async def _complete(self, prompt: str, deadline: float) -> str | None:
        """Return the language model's completion, or None if there is no language model."""
        async with self._request_slots:
            if self._llm is None:  # perhaps another request has just found that it fails
                return None
            return await self._llm.complete(prompt, deadline)

    def _stop_using_llm(self, error: RaylensError) -> None:
        self._llm = None
        self._llm_warning = (
            f"the language model failed: {error.message}; the rest of this attempt did without it"
        )

    def _find_intervals(self, task_index: int) -> list[dict[str, Any]]:
        """Return the intervals of one task, as JSON."""
        times = [frame.time for _, frame in self._frames]
        verdicts: list[Verdict] = [entry["answers"][task_index] for entry in self._entries]
        intervals = find_intervals(times, verdicts, self._input.enter, self._input.leave)
        as_iso = isinstance(self._input.images[0].timestamp, str)
        return [_interval_as_json(interval, as_iso) for interval in intervals]


def make_question(task_text: str) -> str:
    """Return a yes-or-no question about a task. A task that is a question stays as it is."""
    if task_text.rstrip().endswith("?"):
        return task_text
    return QUESTION_PROMPT.format(task=task_text)


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently, and return their results in order.

    Raises the first error, after all other coroutines have stopped.
    """
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def _with_short_answer(options: ResolvedOptions) -> ResolvedOptions:
    max_tokens = min(options.sampling.max_tokens, ANSWER_TOKENS)
    return replace(options, sampling=replace(options.sampling, max_tokens=max_tokens))


def _text_of(reply: Answer | RaylensError) -> str | None:
    return reply.text.strip() if isinstance(reply, Answer) else None


def _to_utc(text: str) -> str:
    try:
        date_time = datetime.fromisoformat(text)
        if date_time.tzinfo is None:
            date_time = date_time.replace(tzinfo=UTC)
        return date_time.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise _invalid_timestamp() from None


def _invalid_timestamp() -> ValueError:
    return ValueError("expected a number of seconds, or an ISO 8601 date-time")


def _timestamp_error(frame_index: int, message: str) -> ValidationError:
    """Return a validation error located at one frame's timestamp.

    A plain ValueError would be located at the whole list.
    """
    error_type = PydanticCustomError("timestamp", "{message}", {"message": message})
    details = InitErrorDetails(type=error_type, loc=(frame_index, "timestamp"), input=None)
    return ValidationError.from_exception_data("Frame", [details])


def _interval_as_json(interval: Interval, as_iso: bool) -> dict[str, Any]:
    return {
        "start": _format_time(interval.start, as_iso),
        "end": _format_time(interval.end, as_iso),
        "seconds": round(interval.end - interval.start, 6),
    }


def _format_time(time: float, as_iso: bool) -> float | str:
    """Return a time in the format of the input's timestamps, to the microsecond."""
    return datetime.fromtimestamp(time, UTC).isoformat() if as_iso else round(time, 6)


def _summarize_tasks(tasks: Sequence[dict[str, Any]]) -> str:
    """Return one line per task, which lists its intervals."""
    return "\n".join(
        f"{_shorten(task['task'])}: {_summarize_intervals(task['intervals'])}." for task in tasks
    )


def _summarize_intervals(intervals: Sequence[dict[str, Any]]) -> str:
    if not intervals:
        return "not seen"
    phrases = [
        f"from {interval['start']} to {interval['end']} ({interval['seconds']:g} s)"
        for interval in intervals[:MAX_SUMMARY_INTERVALS]
    ]
    if len(intervals) > MAX_SUMMARY_INTERVALS:
        phrases.append(f"and {len(intervals) - MAX_SUMMARY_INTERVALS} more")
    return "; ".join(phrases)


def _summarize_evidence(evidence: Sequence[dict[str, Any]]) -> str:
    """Return one line per frame, for at most ``MAX_PROMPT_FRAMES`` evenly spaced frames."""
    step = max(1, math.ceil(len(evidence) / MAX_PROMPT_FRAMES))
    return "\n".join(_summarize_entry(entry) for entry in evidence[::step])


def _summarize_entry(entry: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "unsure"}
    verdicts = ", ".join(words[verdict] for verdict in entry["answers"])
    return f"{entry['timestamp']}: {_shorten(entry['description'] or 'nothing')} ({verdicts})"


def _shorten(text: str) -> str:
    """Return a text on one line of at most ``MAX_LINE_CHARS`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARS else f"{line[: MAX_LINE_CHARS - 1]}…"
