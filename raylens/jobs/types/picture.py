"""Jobs on at most one picture: caption, query, detect and point.

Every output also has ``model`` and, if any, ``warnings``. Coordinates are fractions of the original
picture's size, from 0 to 1.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raylens.core.errors import RaylensError
from raylens.core.types import MAX_OBJECTS, Caption, Detect, Length, Point, Query
from raylens.core.wire import MAX_OBJECTS_LIMIT, Text
from raylens.jobs.inference import Answer, with_greedy_sampling
from raylens.jobs.types.base import JobContext, JobInput, JobType, PictureReference

MAX_TARGETS = 100
"""Largest number of different objects that one job looks for."""

Prompt = Annotated[Text, Field(min_length=1)]


class CaptionInput(JobInput):
    """With a ``prompt``, the caption is the model's answer to it."""

    image: PictureReference
    prompt: Prompt | None = None
    length: Length = Length.NORMAL


class CaptionFields(JobInput):
    """The fields of :class:`CaptionInput` without the picture, for jobs of many pictures."""

    prompt: Prompt | None = None
    length: Length = Length.NORMAL


class QueryInput(JobInput):
    """``prompt`` is an alias of ``question``."""

    image: PictureReference | None = None
    question: Prompt | None = None
    prompt: Prompt | None = None

    @model_validator(mode="after")
    def _check_question(self) -> Self:
        if (self.question is None) == (self.prompt is None):
            raise ValueError("question: expected exactly one of question and prompt")
        return self


class LocateInput(JobInput):
    """One object, or several as ``objects``. ``prompt`` is an alias of ``object``.

    ``max_objects`` limits the places of each.
    """

    image: PictureReference
    object: Prompt | None = None
    objects: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_TARGETS)] | None = None
    prompt: Prompt | None = None
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_LIMIT)] = MAX_OBJECTS

    @model_validator(mode="after")
    def _check_object(self) -> Self:
        if [self.object, self.objects, self.prompt].count(None) != 2:
            raise ValueError("object: expected exactly one of object, objects and prompt")
        return self

    @property
    def targets(self) -> list[str]:
        return self.objects or [self.object or self.prompt or ""]


class CaptionJob(JobType):
    """Output: ``{"caption": "…"}``."""

    name = "caption"
    input_model = CaptionInput

    async def run(self, job_input: CaptionInput, context: JobContext) -> dict[str, Any]:
        return await make_caption(job_input.image, "input.image", job_input, context)


class QueryJob(JobType):
    """Output: ``{"answer": "…"}``."""

    name = "query"
    input_model = QueryInput

    async def run(self, job_input: QueryInput, context: JobContext) -> dict[str, Any]:
        pictures = []
        if job_input.image is not None:
            pictures.append(await context.load_picture(job_input.image, "input.image"))
        task = Query(job_input.question or job_input.prompt or "")
        answer = await context.ask(context.inference.resolve(job_input), task, pictures)
        return make_output({"answer": answer.text}, answer)


class DetectJob(JobType):
    """Output: ``{"objects": [{x_min, y_min, x_max, y_max}]}``.

    If the input has ``objects``, each box has the one that it shows as its ``label``.
    """

    name = capability = "detect"
    input_model = LocateInput

    async def run(self, job_input: LocateInput, context: JobContext) -> dict[str, Any]:
        return await _locate("objects", job_input, context)


class PointJob(JobType):
    """Output: ``{"points": [{x, y}]}``, with labels as in :class:`DetectJob`."""

    name = capability = "point"
    input_model = LocateInput

    async def run(self, job_input: LocateInput, context: JobContext) -> dict[str, Any]:
        return await _locate("points", job_input, context)


async def _locate(
    key: Literal["objects", "points"], job_input: LocateInput, context: JobContext
) -> dict[str, Any]:
    """Return the boxes or the points of all targets under ``key``.

    The targets that an earlier attempt looked for are not looked for again.
    """
    options = with_greedy_sampling(context.inference.resolve(job_input))
    picture = await context.load_picture(job_input.image, "input.image")
    targets = job_input.targets
    partial, progress = context.job.output, context.job.progress
    done = progress.done if partial and progress else 0
    output: dict[str, Any] = partial or {key: []}
    for number, target in enumerate(targets[done:], start=done + 1):
        make_task = Detect if key == "objects" else Point
        answer = await context.ask(options, make_task(target, job_input.max_objects), [picture])
        found = answer.findings.regions if key == "objects" else answer.findings.locations
        label = {} if job_input.objects is None else {"label": target}
        places = [*output[key], *({**asdict(place), **label} for place in found or ())]
        warnings = dict.fromkeys((*output.get("warnings", ()), *answer.warnings))
        output = make_output({key: places}, replace(answer, warnings=tuple(warnings)))
        if number < len(targets):
            await context.report(number, len(targets), output)
    return output


async def make_caption(
    image: str,
    field: str,
    job_input: CaptionInput | CaptionFields,
    context: JobContext,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Return ``{"caption": "…"}`` for one picture. ``field`` is its path in the input.

    Raises any of :mod:`raylens.core.errors`.
    """
    task = Caption(job_input.length) if job_input.prompt is None else Query(job_input.prompt)
    options = context.inference.resolve(job_input)
    picture = await context.load_picture(image, field)
    answer = await context.ask(options, task, [picture], deadline)
    return make_output({"caption": answer.text}, answer)


def make_output(results: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Return a job's output: the results, the model's name and any warnings."""
    output = {**results, "model": answer.model}
    if answer.warnings:
        output["warnings"] = list(answer.warnings)
    return output


def error_as_json(error: RaylensError) -> dict[str, Any]:
    """Return an error that concerns one picture, for the output."""
    return {"code": error.code, "message": error.message, "field": error.field}
