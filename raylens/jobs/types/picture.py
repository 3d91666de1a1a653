"""Jobs about one picture: caption, query, detect and point."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raylens.core.types import MAX_OBJECTS, Caption, Detect, Length, Point, Query
from raylens.core.wire import MAX_OBJECTS_ASKED, Text
from raylens.jobs.inference import Answer, greedy
from raylens.jobs.types.base import JobInput, Picture, Run

Words = Annotated[Text, Field(min_length=1, max_length=100_000)]


class CaptionInput(JobInput):
    """With a ``prompt`` the caption is the answer to it."""

    image: Picture
    prompt: Words | None = None
    length: Length = Length.NORMAL


class QueryInput(JobInput):
    """``prompt`` is another name for the ``question``."""

    image: Picture | None = None
    question: Words | None = None
    prompt: Words | None = None

    @model_validator(mode="after")
    def _has_one_question(self) -> Self:
        if (self.question is None) == (self.prompt is None):
            raise ValueError("question: one is needed (prompt is another name for it)")
        return self


class LocateInput(JobInput):
    """``prompt`` is another name for the ``object``."""

    image: Picture
    object: Words | None = None
    prompt: Words | None = None
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_ASKED)] = MAX_OBJECTS

    @model_validator(mode="after")
    def _has_one_object(self) -> Self:
        if (self.object is None) == (self.prompt is None):
            raise ValueError("object: one is needed (prompt is another name for it)")
        return self

    @property
    def subject(self) -> str:
        return self.object or self.prompt or ""


class CaptionJob:
    """``{"caption": "…"}``"""

    name = "caption"
    input_model = CaptionInput

    async def run(self, given: CaptionInput, run: Run) -> dict[str, Any]:
        return await caption(given.image, "input.image", given, run)


class QueryJob:
    """``{"answer": "…"}``"""

    name = "query"
    input_model = QueryInput

    async def run(self, given: QueryInput, run: Run) -> dict[str, Any]:
        pictures = (
            [await run.picture(given.image, "input.image")] if given.image is not None else []
        )
        task = Query(given.question or given.prompt or "")
        answer = await run.ask(run.inference.resolve(given), task, pictures)
        return told({"answer": answer.text}, answer)


class DetectJob:
    """``{"objects": [{x_min, y_min, x_max, y_max}]}``, in the original picture's coordinates, 0 to
    1."""

    name = "detect"
    input_model = LocateInput

    async def run(self, given: LocateInput, run: Run) -> dict[str, Any]:
        answer = await _located(Detect(given.subject, given.max_objects), given, run)
        return told(
            {"objects": [asdict(region) for region in answer.findings.regions or ()]}, answer
        )


class PointJob:
    """``{"points": [{x, y}]}``, in the original picture's coordinates, 0 to 1."""

    name = "point"
    input_model = LocateInput

    async def run(self, given: LocateInput, run: Run) -> dict[str, Any]:
        answer = await _located(Point(given.subject, given.max_objects), given, run)
        return told(
            {"points": [asdict(location) for location in answer.findings.locations or ()]}, answer
        )


async def _located(task: Detect | Point, given: LocateInput, run: Run) -> Answer:
    return await run.ask(
        greedy(run.inference.resolve(given)), task, [await run.picture(given.image, "input.image")]
    )


class Captionable(JobInput):
    """What a caption depends on, beside its picture."""

    prompt: Words | None = None
    length: Length = Length.NORMAL


async def caption(
    image: str, field: str, given: CaptionInput | Captionable, run: Run
) -> dict[str, Any]:
    """``{"caption": "…"}`` of one picture."""
    task = Caption(given.length) if given.prompt is None else Query(given.prompt)
    answer = await run.ask(run.inference.resolve(given), task, [await run.picture(image, field)])
    return told({"caption": answer.text}, answer)


def told(output: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The output with who answered, and what the picture's preprocessing warned of."""
    return {
        **output,
        "model": answer.model,
        **({"warnings": list(answer.warnings)} if answer.warnings else {}),
    }
