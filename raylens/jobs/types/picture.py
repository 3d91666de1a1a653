"""Jobs on at most one picture: caption, query, detect and point.

Every output also has ``model`` and, if any, ``warnings``. Coordinates are fractions of the original
picture's size, from 0 to 1.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raylens.core.errors import RaylensError
from raylens.core.types import MAX_OBJECTS, Caption, Detect, Length, Point, Query
from raylens.core.wire import MAX_OBJECTS_LIMIT, Text
from raylens.jobs.inference import Answer, with_greedy_sampling
from raylens.jobs.types.base import JobContext, JobInput, JobType, PictureReference

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
    """``prompt`` is an alias of ``object``."""

    image: PictureReference
    object: Prompt | None = None
    prompt: Prompt | None = None
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_LIMIT)] = MAX_OBJECTS

    @model_validator(mode="after")
    def _check_object(self) -> Self:
        if (self.object is None) == (self.prompt is None):
            raise ValueError("object: expected exactly one of object and prompt")
        return self

    @property
    def target(self) -> str:
        return self.object or self.prompt or ""


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
    """Output: ``{"objects": [{x_min, y_min, x_max, y_max}]}``."""

    name = "detect"
    input_model = LocateInput

    async def run(self, job_input: LocateInput, context: JobContext) -> dict[str, Any]:
        task = Detect(job_input.target, job_input.max_objects)
        answer = await _locate(task, job_input, context)
        objects = [asdict(region) for region in answer.findings.regions or ()]
        return make_output({"objects": objects}, answer)


class PointJob(JobType):
    """Output: ``{"points": [{x, y}]}``."""

    name = "point"
    input_model = LocateInput

    async def run(self, job_input: LocateInput, context: JobContext) -> dict[str, Any]:
        task = Point(job_input.target, job_input.max_objects)
        answer = await _locate(task, job_input, context)
        points = [asdict(location) for location in answer.findings.locations or ()]
        return make_output({"points": points}, answer)


async def _locate(task: Detect | Point, job_input: LocateInput, context: JobContext) -> Answer:
    options = with_greedy_sampling(context.inference.resolve(job_input))
    picture = await context.load_picture(job_input.image, "input.image")
    return await context.ask(options, task, [picture])


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
