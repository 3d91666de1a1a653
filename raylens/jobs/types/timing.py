"""A job that finds when tasks start and end, from timestamped pictures of a worn camera."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from raylens.core.errors import RaylensError
from raylens.core.types import Caption, Length, PictureFile, Query, Task
from raylens.core.wire import Body, Text
from raylens.jobs.inference import Answer, ResolvedOptions, greedy
from raylens.jobs.intervals import Evidence, Interval, intervals
from raylens.jobs.types.base import JobContext, JobInput, JobType, Picture

QUESTION = "Task: {task}\nIs somebody doing this task in the picture? Answer yes or no."
READING = (
    "A picture is described so: {description}\n\n{question}\n"
    "Go by the description only. Answer yes or no."
)
WORDING = (
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
Description = Annotated[Text, Field(min_length=1, max_length=4000)]
FrameCount = Annotated[int, Field(ge=1, le=50)]
_YES_OR_NO = re.compile(r"[\W_]*(yes|no)(?![^\W_])(?!\s*(?:/|or\b)\s*(?:yes|no)\b)", re.IGNORECASE)


class Frame(Body):
    """A picture, and the time at which it was taken.

    ``timestamp`` is a number of seconds or an ISO 8601 date. A date without an offset is in UTC.
    """

    image: Picture
    timestamp: float | str

    @field_validator("timestamp", mode="plain")
    @classmethod
    def _parse_timestamp(cls, value: Any) -> float | str:
        """Return a finite number, or a date in UTC."""
        if isinstance(value, str):
            return _to_utc(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _invalid_timestamp()
        # Compare before converting: an int may be too large for a float. NaN fails it too.
        if not -MAX_TIMESTAMP <= value <= MAX_TIMESTAMP:
            raise ValueError(f"expected a finite number; the limit is {MAX_TIMESTAMP:g}")
        return float(value)

    @property
    def time(self) -> float:
        """The timestamp in seconds. A date counts from the epoch."""
        if isinstance(self.timestamp, str):
            return datetime.fromisoformat(self.timestamp).timestamp()
        return self.timestamp


class TimingInput(JobInput):
    """One task as ``prompt``, or several as ``tasks``, and the frames in any order.

    ``vlm_prompt`` asks for the description of a frame; by default it is a short caption. ``enter``
    and ``leave`` are those of :func:`raylens.jobs.intervals.intervals`.
    """

    prompt: Description | None = None
    tasks: Annotated[list[Description], Field(min_length=1, max_length=16)] | None = None
    vlm_prompt: Description | None = None
    images: Annotated[list[Frame], Field(min_length=1)]
    enter: FrameCount = 2
    leave: FrameCount = 2

    @field_validator("images")
    @classmethod
    def _check_timestamps(cls, images: list[Frame]) -> list[Frame]:
        number_by_time: dict[float, int] = {}
        for number, frame in enumerate(images):
            if type(frame.timestamp) is not type(images[0].timestamp):
                message = "expected all timestamps to be numbers, or all to be dates"
                raise _timestamp_error(number, message)
            first = number_by_time.setdefault(frame.time, number)
            if first != number:
                raise _timestamp_error(number, f"same as the timestamp of images.{first}")
        return images

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if (self.prompt is None) == (self.tasks is None):
            raise ValueError("prompt: expected exactly one of prompt and tasks")
        return self

    @property
    def descriptions(self) -> list[str]:
        """The description of each task."""
        return self.tasks or [self.prompt or ""]


class TaskTimingJob(JobType):
    """Finds the intervals in which each task is done.

    Output: ``{"tasks": [{"task", "intervals": [{"start", "end", "seconds"}]}], "summary",
    "evidence", "model"}``.

    ``evidence`` has an entry for each frame, in order of time: its ``timestamp``, its
    ``description``, and its ``answers``, which hold for each task true, false, or null if the frame
    is unclear. A frame that fails also has an ``error``. Times are numbers or dates, like the
    timestamps of the input.

    Finished entries are stored, and the next attempt resumes after them.
    """

    name = "task_timing_v1"
    input_model = TimingInput

    async def run(self, job_input: TimingInput, context: JobContext) -> dict[str, Any]:
        attempt = _TimingAttempt(job_input, context)
        await attempt.ask_about_frames()
        await attempt.interpret_descriptions()
        return await attempt.make_output()


class _TimingAttempt:
    """One attempt. It collects the evidence in groups of frames."""

    def __init__(self, job_input: TimingInput, context: JobContext) -> None:
        self._input = job_input
        self._context = context
        self._llm = context.llm
        self._options = greedy(context.inference.resolve(job_input))
        by_time = sorted(enumerate(job_input.images), key=lambda item: item[1].time)
        self._frames: list[tuple[int, Frame]] = by_time
        """The frames in order of time, each with its index in the input."""
        partial = context.job.output or {}
        evidence = list(partial.get("evidence", ()))
        self._evidence: list[dict[str, Any]] = evidence[: len(self._frames)]
        self._warnings: list[str] = list(partial.get("warnings", ()))
        self._llm_warning: str | None = None
        """Why the language model is no longer used."""
        self._group_size = context.config.image_batch_size
        # With one task, all requests of a group run at once: a description and an answer for each
        # frame. More tasks share the limit, because more requests could overflow the model's queue.
        self._request_limit = asyncio.Semaphore(2 * self._group_size)

    async def ask_about_frames(self) -> None:
        """Ask the vision model about each frame that has no evidence yet."""
        for first in range(len(self._evidence), len(self._frames), self._group_size):
            group = self._frames[first : first + self._group_size]
            entries = (self._ask_about_frame(number, frame) for number, frame in group)
            self._evidence += await _gather(entries)
            await self._report()

    async def interpret_descriptions(self) -> None:
        """Answer the unclear questions with the language model, from the descriptions."""
        unclear = [
            position
            for position, entry in enumerate(self._evidence)
            if entry["description"] and None in entry["answers"]
        ]
        for first in range(0, len(unclear), self._group_size):
            if self._llm is None:
                return
            group = unclear[first : first + self._group_size]
            await _gather(self._interpret_entry(position) for position in group)
            await self._report()

    async def make_output(self) -> dict[str, Any]:
        tasks = [
            {"task": task, "intervals": self._find_intervals(number)}
            for number, task in enumerate(self._input.descriptions)
        ]
        plain_summary = _summarize_tasks(tasks)
        prompt = WORDING.format(summary=plain_summary, seen=_summarize_evidence(self._evidence))
        summary = await self._complete(prompt)
        output = {
            "tasks": tasks,
            "summary": (summary or "").strip() or plain_summary,
            "evidence": self._evidence,
            "model": self._options.model,
        }
        warnings = self._all_warnings()
        if warnings:
            output["warnings"] = warnings
        return output

    def _all_warnings(self) -> list[str]:
        warnings = list(self._warnings)
        failed = sum("error" in entry for entry in self._evidence)
        if failed:
            warnings.append(f"{failed} of {len(self._evidence)} frames have an error")
        if self._llm_warning is not None:
            warnings.append(self._llm_warning)
        return warnings

    async def _report(self) -> None:
        partial = {"evidence": list(self._evidence), "warnings": list(self._warnings)}
        await self._context.report(len(self._evidence), len(self._frames), partial)

    async def _ask_about_frame(self, number: int, frame: Frame) -> dict[str, Any]:
        """Return the evidence of a frame. ``number`` is its index in the input."""
        tasks = self._input.descriptions
        try:
            picture = await self._context.load_picture(frame.image, f"input.images.{number}.image")
        except RaylensError as error:
            if error.retryable:
                raise
            return self._make_entry(frame, error, [error] * len(tasks))
        description_task: Task = Caption(Length.SHORT)
        if self._input.vlm_prompt is not None:
            description_task = Query(self._input.vlm_prompt)
        short = _with_short_answer(self._options)
        description, *answers = await _gather(
            [
                self._ask(self._options, description_task, picture),
                *(self._ask(short, Query(make_question(task)), picture) for task in tasks),
            ]
        )
        return self._make_entry(frame, description, answers)

    async def _ask(
        self, options: ResolvedOptions, task: Task, picture: PictureFile
    ) -> Answer | RaylensError:
        """Return the answer, or the error that only this frame has.

        Raises retryable errors: they end the attempt.
        """
        try:
            async with self._request_limit:
                return await self._context.ask(options, task, [picture])
        except RaylensError as error:
            if error.retryable:
                raise
            return error

    def _make_entry(
        self,
        frame: Frame,
        description: Answer | RaylensError,
        answers: Sequence[Answer | RaylensError],
    ) -> dict[str, Any]:
        """Return a frame's entry in the evidence, and collect the warnings of its answers."""
        replies = [description, *answers]
        for reply in replies:
            if isinstance(reply, Answer):
                self._add_warnings(reply.warnings)
        entry: dict[str, Any] = {
            "timestamp": frame.timestamp,
            "description": _text_of(description),
            "answers": [parse_yes_or_no(_text_of(answer)) for answer in answers],
        }
        error = next((reply for reply in replies if isinstance(reply, RaylensError)), None)
        if error is not None:
            entry["error"] = {"code": error.code, "message": error.message, "field": error.field}
        return entry

    def _add_warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warnings and len(self._warnings) < MAX_WARNINGS:
                self._warnings.append(warning)

    async def _interpret_entry(self, position: int) -> None:
        """Answer the unclear questions of one entry.

        The entry is replaced and not changed, because the store may be writing the old one.
        """
        entry = self._evidence[position]
        answers = await _gather(
            self._interpret(entry["description"], number, answer)
            for number, answer in enumerate(entry["answers"])
        )
        self._evidence[position] = {**entry, "answers": answers}

    async def _interpret(self, description: str, number: int, answer: Evidence) -> Evidence:
        """Return whether a description shows task ``number``. A clear ``answer`` stays."""
        if answer is not None:
            return answer
        question = make_question(self._input.descriptions[number])
        prompt = READING.format(description=description[:MAX_DESCRIPTION_CHARS], question=question)
        return parse_yes_or_no(await self._complete(prompt))

    async def _complete(self, prompt: str) -> str | None:
        """Return the language model's completion, or None without a language model.

        Raises a retryable error if another attempt is left. After any other error, the job goes on
        without the language model.
        """
        if self._llm is None:
            return None
        job = self._context.job
        try:
            async with self._request_limit:
                return await self._llm.complete(prompt, self._context.deadline)
        except RaylensError as error:
            if error.retryable and job.attempts < job.max_attempts:
                raise
            self._llm = None
            self._llm_warning = (
                f"the language model failed: {error.message}; the summary doesn't use it"
            )
            return None

    def _find_intervals(self, number: int) -> list[dict[str, Any]]:
        """Return the intervals of task ``number``."""
        times = [frame.time for _, frame in self._frames]
        evidence: list[Evidence] = [entry["answers"][number] for entry in self._evidence]
        uses_dates = isinstance(self._input.images[0].timestamp, str)
        return [
            _interval_as_json(interval, uses_dates)
            for interval in intervals(times, evidence, self._input.enter, self._input.leave)
        ]


def make_question(task: str) -> str:
    """Return a yes-or-no question about a task. A task that is a question stays as it is."""
    return task if task.rstrip().endswith("?") else QUESTION.format(task=task)


def parse_yes_or_no(text: str | None) -> Evidence:
    """Return whether a text begins with yes or no.

    Return None if it begins otherwise. An echo of "yes or no" counts as neither.
    """
    match = _YES_OR_NO.match(text or "")
    return None if match is None else match[1].lower() == "yes"


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently, and return their results in order.

    Raises the first error, after all other coroutines have stopped.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _with_short_answer(options: ResolvedOptions) -> ResolvedOptions:
    max_tokens = min(options.sampling.max_tokens, ANSWER_TOKENS)
    return replace(options, sampling=replace(options.sampling, max_tokens=max_tokens))


def _text_of(reply: Answer | RaylensError) -> str | None:
    return reply.text.strip() if isinstance(reply, Answer) else None


def _to_utc(text: str) -> str:
    try:
        date = datetime.fromisoformat(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return date.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise _invalid_timestamp() from None


def _invalid_timestamp() -> ValueError:
    return ValueError("expected a number of seconds, or an ISO 8601 date")


def _timestamp_error(number: int, message: str) -> ValidationError:
    """Return an error for the timestamp of one frame, raised while the list is validated."""
    problem = PydanticCustomError("timestamp", "{message}", {"message": message})
    details = InitErrorDetails(type=problem, loc=(number, "timestamp"), input=None)
    return ValidationError.from_exception_data("Frame", [details])


def _interval_as_json(interval: Interval, uses_dates: bool) -> dict[str, Any]:
    return {
        "start": _format_time(interval.start, uses_dates),
        "end": _format_time(interval.end, uses_dates),
        "seconds": round(interval.end - interval.start, 6),
    }


def _format_time(time: float, uses_dates: bool) -> float | str:
    """Return a time in the format of the input's timestamps, to the microsecond."""
    return datetime.fromtimestamp(time, UTC).isoformat() if uses_dates else round(time, 6)


def _summarize_tasks(tasks: Sequence[dict[str, Any]]) -> str:
    """Return a line for each task with its intervals."""
    return "\n".join(
        f"{_shorten(task['task'])}: {_summarize_intervals(task['intervals'])}." for task in tasks
    )


def _summarize_intervals(spans: Sequence[dict[str, Any]]) -> str:
    if not spans:
        return "not seen"
    phrases = [
        f"from {span['start']} to {span['end']} ({span['seconds']:g} s)"
        for span in spans[:MAX_SUMMARY_INTERVALS]
    ]
    if len(spans) > MAX_SUMMARY_INTERVALS:
        phrases.append(f"{len(spans) - MAX_SUMMARY_INTERVALS} times more")
    return "; ".join(phrases)


def _summarize_evidence(evidence: Sequence[dict[str, Any]]) -> str:
    """Return a line for each of at most ``MAX_PROMPT_FRAMES`` frames, evenly spaced."""
    step = max(1, math.ceil(len(evidence) / MAX_PROMPT_FRAMES))
    return "\n".join(_summarize_entry(entry) for entry in evidence[::step])


def _summarize_entry(entry: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "unsure"}
    answers = ", ".join(words[answer] for answer in entry["answers"])
    return f"{entry['timestamp']}: {_shorten(entry['description'] or 'nothing')} ({answers})"


def _shorten(text: str) -> str:
    """Return a text on one line of at most ``MAX_LINE_CHARS`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARS else f"{line[: MAX_LINE_CHARS - 1]}…"
