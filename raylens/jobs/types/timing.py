"""When tasks start and end, in timestamped pictures from a worn camera."""

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
from raylens.jobs.intervals import Evidence, intervals
from raylens.jobs.types.base import JobInput, Picture, Run

QUESTION = "Task: {task}\nIs somebody doing this task in the picture? Answer yes or no."
READING = "A picture is described so: {description}\n\n{question}\nGo by the description only. Answer yes or no."
WORDING = (
    "Pictures from a worn camera were looked at, one after the other, to find when tasks are done.\n\n"
    "Found:\n{found}\n\nSeen, in order of time:\n{seen}\n\n"
    "Summarize in a few plain sentences what was done and when. Keep to these times."
)
ANSWER_TOKENS = 16
"""Of a yes or no: only its first word is read."""
LONGEST_TIME = 1e18
"""Of a number that is a timestamp: such that middles and differences stay finite."""
SHOWN_FRAMES, SHOWN_INTERVALS, SHOWN_CHARS, READ_CHARS = 32, 10, 120, 2000
"""What a prompt for the language model, and a summary, hold at most, so that a small model's
context suffices."""
MAX_WARNINGS = 20

T = TypeVar("T")
Description = Annotated[Text, Field(min_length=1, max_length=4000)]
Frames = Annotated[int, Field(ge=1, le=50)]
_YES_OR_NO = re.compile(r"[\W_]*(yes|no)(?![^\W_])(?!\s*(?:/|or\b)\s*(?:yes|no)\b)", re.IGNORECASE)


class Frame(Body):
    """A picture and when it was taken: seconds, or a date of ISO 8601, in UTC where it names no
    offset."""

    image: Picture
    timestamp: float | str

    @field_validator("timestamp", mode="plain")
    @classmethod
    def _is_a_time(cls, value: Any) -> float | str:
        """Dates become those of UTC."""
        if isinstance(value, str):
            return _date(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a number of seconds, or a date of ISO 8601, is needed")
        # An int may be too large for a float, so the bound comes first; NaN fails it too.
        if not -LONGEST_TIME <= value <= LONGEST_TIME:
            raise ValueError(f"a finite number of at most {LONGEST_TIME:g} is needed")
        return float(value)

    @property
    def time(self) -> float:
        """In seconds; of a date since the epoch."""
        value = self.timestamp
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


class TimingInput(JobInput):
    """One task as the ``prompt``, or several ``tasks``. ``vlm_prompt``: how a frame is to be
    described.

    ``enter`` and ``leave``: see :func:`raylens.jobs.intervals.intervals`. The frames may come in
    any order.
    """

    prompt: Description | None = None
    tasks: Annotated[list[Description], Field(min_length=1, max_length=16)] | None = None
    vlm_prompt: Description | None = None
    images: Annotated[list[Frame], Field(min_length=1)]
    enter: Frames = 2
    leave: Frames = 2

    @field_validator("images")
    @classmethod
    def _times_are_of_one_kind_and_differ(cls, images: list[Frame]) -> list[Frame]:
        seen: dict[float, int] = {}
        for number, frame in enumerate(images):
            if type(frame.timestamp) is not type(images[0].timestamp):
                raise _about_time(number, "all timestamps are numbers, or all are dates")
            before = seen.setdefault(frame.time, number)
            if before != number:
                raise _about_time(number, f"images.{before} has the same")
        return images

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if (self.prompt is None) == (self.tasks is None):
            raise ValueError("prompt: either it or tasks is needed")
        return self

    @property
    def descriptions(self) -> list[str]:
        return self.tasks or [self.prompt or ""]


class TaskTimingJob:
    """``{"tasks": [{"task", "intervals": [{"start", "end", "seconds"}]}], "summary", "evidence",
    "model"}``.

    ``evidence`` has for each frame, in the order of time, its ``timestamp`` and ``description``,
    and an answer for each task: true, false, or null where the frame doesn't tell; and the
    ``error`` that it alone has. Times are of the kind that was sent. What is seen is kept: an
    attempt that dies is gone on with, and not begun anew.
    """

    name = "task_timing_v1"
    input_model = TimingInput

    async def run(self, given: TimingInput, run: Run) -> dict[str, Any]:
        study = _Study(given, run)
        await study.look()
        await study.interpret()
        return await study.conclude()


class _Study:
    """One attempt. The evidence grows by a group of frames at a time."""

    def __init__(self, given: TimingInput, run: Run) -> None:
        self._given = given
        self._run = run
        self._llm = run.llm
        self._options = greedy(run.inference.resolve(given))
        self._frames = sorted(enumerate(given.images), key=lambda numbered: numbered[1].time)
        partial = run.job.output or {}
        self._evidence: list[dict[str, Any]] = list(partial.get("evidence", ()))[
            : len(self._frames)
        ]
        self._warnings: list[str] = list(partial.get("warnings", ()))
        self._trouble: str | None = None
        """Why the language model is not asked any more."""
        self._group = run.config.image_batch_size
        # A group's requests for one task fit; those of more tasks take turns, lest a model's queue
        # overflow.
        self._room = asyncio.Semaphore(2 * self._group)

    async def look(self) -> None:
        """Asks about the frames that have no evidence yet."""
        for first in range(len(self._evidence), len(self._frames), self._group):
            group = self._frames[first : first + self._group]
            self._evidence += await _together(
                self._look_at(number, frame) for number, frame in group
            )
            await self._report()

    async def interpret(self) -> None:
        """Lets the language model say of descriptions what the pictures' own answers didn't tell."""
        unsure = [
            place
            for place, entry in enumerate(self._evidence)
            if entry["description"] and None in entry["answers"]
        ]
        for first in range(0, len(unsure), self._group):
            if self._llm is None:
                return
            await _together(self._read(place) for place in unsure[first : first + self._group])
            await self._report()

    async def conclude(self) -> dict[str, Any]:
        """The output."""
        tasks = [self._timed(number, task) for number, task in enumerate(self._given.descriptions)]
        said = await self._complete(WORDING.format(found=_plain(tasks), seen=_seen(self._evidence)))
        failed = sum("error" in entry for entry in self._evidence)
        warnings = list(self._warnings)
        if failed:
            warnings.append(f"{failed} of {len(self._evidence)} frames have an error")
        if self._trouble is not None:
            warnings.append(self._trouble)
        return {
            "tasks": tasks,
            "summary": (said or "").strip() or _plain(tasks),
            "evidence": self._evidence,
            "model": self._options.model,
            **({"warnings": warnings} if warnings else {}),
        }

    async def _report(self) -> None:
        partial = {"evidence": list(self._evidence), "warnings": list(self._warnings)}
        await self._run.report(len(self._evidence), len(self._frames), partial)

    async def _look_at(self, number: int, frame: Frame) -> dict[str, Any]:
        """The evidence of a frame; ``number`` is its place among the input's."""
        given = self._given
        described: Task = (
            Caption(Length.SHORT) if given.vlm_prompt is None else Query(given.vlm_prompt)
        )
        try:
            picture = await self._run.picture(frame.image, f"input.images.{number}.image")
        except RaylensError as error:
            if error.retryable:
                raise
            return self._entry(frame, [error] * (1 + len(given.descriptions)))
        short = _of_few_words(self._options)
        questions = [
            self._ask(short, Query(question(task)), picture) for task in given.descriptions
        ]
        return self._entry(
            frame, await _together([self._ask(self._options, described, picture), *questions])
        )

    async def _ask(
        self, options: ResolvedOptions, task: Task, picture: PictureFile
    ) -> Answer | RaylensError:
        """Raises what another attempt may mend; what it can't is the frame's own."""
        try:
            async with self._room:
                return await self._run.ask(options, task, [picture])
        except RaylensError as error:
            if error.retryable:
                raise
            return error

    def _entry(self, frame: Frame, said: Sequence[Answer | RaylensError]) -> dict[str, Any]:
        """``said``: the description, and an answer for each task."""
        for warning in (
            warning for answer in said if isinstance(answer, Answer) for warning in answer.warnings
        ):
            if warning not in self._warnings and len(self._warnings) < MAX_WARNINGS:
                self._warnings.append(warning)
        texts = [answer.text.strip() if isinstance(answer, Answer) else None for answer in said]
        answers = [yes_or_no(text) for text in texts[1:]]
        entry: dict[str, Any] = {
            "timestamp": frame.timestamp,
            "description": texts[0],
            "answers": answers,
        }
        error = next((answer for answer in said if isinstance(answer, RaylensError)), None)
        if error is not None:
            entry["error"] = {"code": error.code, "message": error.message, "field": error.field}
        return entry

    async def _read(self, place: int) -> None:
        """A frame's unsure answers anew. Its entry is replaced, as the old one may be on its way to
        the store."""
        entry = self._evidence[place]
        works = [self._answer(entry["description"], *pair) for pair in enumerate(entry["answers"])]
        self._evidence[place] = {**entry, "answers": await _together(works)}

    async def _answer(self, description: str, number: int, answer: Evidence) -> Evidence:
        """Whether task ``number`` is done where a picture is described so; an answer that there is
        stands."""
        if answer is not None:
            return answer
        asked = question(self._given.descriptions[number])
        return yes_or_no(
            await self._complete(
                READING.format(description=description[:READ_CHARS], question=asked)
            )
        )

    async def _complete(self, prompt: str) -> str | None:
        """What the language model says; None without one. It is not worth a job: where the attempt
        is the last, or another can't help, the job goes on without it."""
        if self._llm is None:
            return None
        try:
            async with self._room:
                return await self._llm.complete(prompt, self._run.deadline)
        except RaylensError as error:
            if error.retryable and self._run.job.attempts < self._run.job.max_attempts:
                raise
            self._llm = None
            self._trouble = (
                f"the language model failed, and the summary is without it: {error.message}"
            )
            return None

    def _timed(self, number: int, task: str) -> dict[str, Any]:
        times = [frame.time for _, frame in self._frames]
        evidence: list[Evidence] = [entry["answers"][number] for entry in self._evidence]
        is_date = isinstance(self._given.images[0].timestamp, str)
        found = [
            {
                "start": _shown(interval.start, is_date),
                "end": _shown(interval.end, is_date),
                "seconds": round(interval.end - interval.start, 6),
            }
            for interval in intervals(times, evidence, self._given.enter, self._given.leave)
        ]
        return {"task": task, "intervals": found}


def question(task: str) -> str:
    """A task's description as a question of yes or no; one that is a question is asked as it
    stands."""
    return task if task.rstrip().endswith("?") else QUESTION.format(task=task)


def yes_or_no(text: str | None) -> Evidence:
    """What an answer begins with; None is anything else, an echo of "yes or no" too."""
    found = _YES_OR_NO.match(text or "")
    return None if found is None else found[1].lower() == "yes"


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. Raises the first error, and by then the others have stopped."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _of_few_words(options: ResolvedOptions) -> ResolvedOptions:
    return replace(
        options,
        sampling=replace(
            options.sampling, max_tokens=min(options.sampling.max_tokens, ANSWER_TOKENS)
        ),
    )


def _date(text: str) -> str:
    try:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise ValueError("a number of seconds, or a date of ISO 8601, is needed") from None


def _shown(time: float, is_date: bool) -> float | str:
    """A time as the sender has them, to the microsecond."""
    return datetime.fromtimestamp(time, UTC).isoformat() if is_date else round(time, 6)


def _about_time(number: int, message: str) -> ValidationError:
    """An error of a field's own within a list that was checked as a whole."""
    problem = PydanticCustomError("timestamp", "{message}", {"message": message})
    details = InitErrorDetails(type=problem, loc=(number, "timestamp"), input=None)
    return ValidationError.from_exception_data("Frame", [details])


def _plain(tasks: Sequence[dict[str, Any]]) -> str:
    """The intervals in words, a line for each task."""
    return "\n".join(f"{_cut(task['task'])}: {_spans(task['intervals'])}." for task in tasks)


def _spans(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return "not seen"
    spans = [
        f"from {span['start']} to {span['end']} ({span['seconds']:g} s)"
        for span in found[:SHOWN_INTERVALS]
    ]
    more = [f"{len(found) - SHOWN_INTERVALS} times more"] if len(found) > SHOWN_INTERVALS else []
    return "; ".join(spans + more)


def _seen(evidence: Sequence[dict[str, Any]]) -> str:
    """Lines of evidence, evenly from all of it."""
    step = max(1, math.ceil(len(evidence) / SHOWN_FRAMES))
    return "\n".join(_line(entry) for entry in evidence[::step])


def _line(entry: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "unsure"}
    answers = ", ".join(words[answer] for answer in entry["answers"])
    return f"{entry['timestamp']}: {_cut(entry['description'] or 'nothing')} ({answers})"


def _cut(text: str) -> str:
    """On one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
