"""The caption service's dialect: captions, descriptions and surveillance reports while the client
waits. :mod:`raylens.api.caption_jobs` has its captions in the background."""

from __future__ import annotations

import re
import time
from contextlib import aclosing
from dataclasses import asdict, replace
from itertools import count
from typing import Any

from fastapi import APIRouter, Request

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.context import Context, gather
from raylens.api.picture_body import PictureBody, describe_body, read_body, require_picture
from raylens.core.errors import ModelFailed
from raylens.core.types import Caption, Delta, Detect, Findings, Length, PictureFile, Query, Task
from raylens.core.wire import Text

ACTIVITIES = "What activities are happening in this image?"
UNUSUAL = "Is there anything unusual or suspicious in this image?"
SUBJECTS = {"people": "person", "vehicles": "vehicle"}
"""What a surveillance report counts, and the object to detect."""
HOW_MANY = "How many {} are there in this image?"
"""The question to a model that can't detect."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_OTHER_NUMBERS = {"none": 0, "no": 0, "dozen": 12}
_DIGITS = re.compile(r"\b\d{1,3}(?:,\d{3})+\b|\b\d{1,9}\b")
_NUMBER = re.compile(rf"\b(none|no(?= \w)|dozen|{'|'.join(_NUMBERS)})\b", re.IGNORECASE)
_NOTHING = re.compile(
    r"^\W*(?:no|none|nothing|not)\b"
    r"|\bnothing\b|\bnot?\b(?:\W+\w+){0,4}?\W+(?:anything|unusual|suspicious|visible)"
    r"|n't\b(?:\W+\w+){0,4}?\W+(?:anything|unusual|suspicious)",
    re.IGNORECASE,
)
"""Answers that deny that there is anything unusual."""


class DescribeRequest(PictureBody):
    """Body of the dialect's requests. ``image_data`` is raw base64 or a URL, and ``prompt`` a
    question that is answered in place of a caption."""

    picture_field = "image_data"
    accepts_base64 = True
    image_data: Text | None = None
    prompt: Text | None = None
    length: Length | None = None


def router(context: Context) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(tags=["Caption service"])
    body = describe_body(DescribeRequest)

    @routes.post(
        "/caption", summary="Caption a picture", openapi_extra=body, **answers(shapes.Caption)
    )
    async def caption(http: Request) -> dict[str, Any]:
        inquiry = await Inquiry.read(context, http)
        return inquiry.finish({"caption": await inquiry.describe(Length.NORMAL)})

    @routes.post(
        "/describe/file",
        summary="Describe an uploaded picture",
        openapi_extra=body,
        **answers(shapes.Description),
    )
    @routes.post(
        "/describe",
        summary="Describe a picture",
        openapi_extra=body,
        **answers(shapes.Description),
    )
    async def describe(http: Request) -> dict[str, Any]:
        inquiry = await Inquiry.read(context, http)
        return inquiry.finish({"description": await inquiry.describe(Length.LONG)})

    @routes.post(
        "/surveillance",
        summary="Report people, vehicles, activities and anything unusual in a picture",
        openapi_extra=body,
        **answers(shapes.Surveillance),
    )
    async def surveillance(http: Request) -> dict[str, Any]:
        inquiry = await Inquiry.read(context, http)
        return inquiry.finish(await inquiry.report())

    @routes.get(
        "/model/info",
        summary="Describe a model; by default, the one that captions",
        **answers(shapes.ModelInfo),
    )
    async def model_info(model: str | None = None) -> dict[str, Any]:
        config = context.catalog.models[context.catalog.resolve(model, "caption")]
        info = await context.service.model_info(config.name)
        jobs = context.config.jobs
        return {
            "model": info.name,
            "family": info.family,
            "checkpoint": info.checkpoint,
            "device": info.device,
            "dtype": info.dtype,
            "tasks": list(info.tasks),
            "parameters": info.parameters,
            "max_image_size": config.max_image_size,
            "queue": {"capacity": jobs.capacity, "workers": jobs.workers} if jobs.enabled else None,
        }

    return routes


class Inquiry:
    """One or more questions about the picture of a request."""

    def __init__(
        self, context: Context, http: Request, body: DescribeRequest, picture: PictureFile
    ) -> None:
        self._context = context
        self._http = http
        self._body = body
        self._picture = picture
        self._model = context.catalog.resolve(body.model, "caption")
        self._numbers = count()
        self._warnings: dict[str, None] = {}
        self._answered_by: dict[str, None] = {}

    @classmethod
    async def read(cls, context: Context, http: Request) -> Inquiry:
        """Read a request. Raises ``InvalidRequest``, ``UnknownModel``, and what a download does."""
        body, picture = await read_body(http, DescribeRequest, context)
        context.check_text_length(len(body.prompt or ""), "prompt")
        return cls(context, http, body, require_picture(http, body, picture))

    async def describe(self, length: Length) -> str:
        """Return the answer to the prompt, or without one a caption of ``length`` by default."""
        prompt = self._body.prompt
        text, _ = await self._ask(Query(prompt) if prompt else Caption(self._body.length or length))
        return text

    async def report(self) -> dict[str, Any]:
        """Return a summary, and what there is of people, vehicles, activities and the unusual.

        The first answer leaves the encoded picture in the model's cache, where the other questions
        find it.
        """
        summary = await self.describe(Length.NORMAL)
        # The others are probably answered by the same model, which may be a fallback.
        model = next(iter(self._answered_by), self._model)
        info = await self._context.service.model_info(model)
        count_objects = self._count
        if Detect.name not in info.tasks:
            count_objects = self._estimate
            note = f"people, vehicles: counted by questions, because {model} can't detect"
            self._warnings[note] = None
        *counts, activities, unusual = await gather(
            [
                *(count_objects(field) for field in SUBJECTS),
                self._describe(ACTIVITIES),
                self._describe(UNUSUAL),
            ]
        )
        return {
            "summary": summary,
            **dict(zip(SUBJECTS, counts, strict=True)),
            "activities": activities,
            "unusual": {"found": not _NOTHING.search(unusual["description"]), **unusual},
        }

    def finish(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer with what every answer has beside it."""
        seconds = time.time() - self._http.state.received_at
        model = ", ".join(self._answered_by) or self._model
        answer |= {"model": model, "processing_time": round(seconds, 4)}
        return {**answer, "warnings": list(self._warnings)} if self._warnings else answer

    async def _count(self, field: str) -> dict[str, Any]:
        """Detect objects, and return their number and boxes."""
        _, findings = await self._ask(Detect(SUBJECTS[field]))
        if findings.regions is None:
            raise ModelFailed("the answer ended early")
        boxes = [asdict(region) for region in findings.regions]
        return {"count": len(boxes), "objects": boxes}

    async def _estimate(self, field: str) -> dict[str, Any]:
        """Ask for the number of objects; None if the answer has no number."""
        text, _ = await self._ask(Query(HOW_MANY.format(field)))
        return {"count": parse_count(text), "description": text}

    async def _describe(self, question: str) -> dict[str, Any]:
        text, _ = await self._ask(Query(question))
        return {"description": text}

    async def _ask(self, task: Task) -> tuple[str, Findings]:
        """Return the model's answer about the picture: its text, and its findings."""
        sampling = self._context.build_sampling()
        request = self._context.build_request(
            self._http, self._model, task, sampling, self._body.recipe
        )
        request = replace(request, id=f"{request.id}.{next(self._numbers)}")
        async with aclosing(self._context.service.generate(request, [self._picture])) as stream:
            deltas: list[Delta] = [delta async for delta in stream]
        self._warnings |= dict.fromkeys(warning for delta in deltas for warning in delta.warnings)
        self._answered_by |= {delta.model or self._model: None for delta in deltas[:1]}
        findings = deltas[-1].findings if deltas else None
        return "".join(delta.text for delta in deltas), findings or Findings()


def parse_count(text: str) -> int | None:
    """Return the first number in an answer; None if there is none.

    Digits count before words: in "No, there are 3", only the digits are a number.
    """
    if digits := _DIGITS.search(text):
        return int(digits[0].replace(",", ""))
    match = _NUMBER.search(text)
    if match is None:
        return None
    word = match[0].lower()
    return _NUMBERS.index(word) if word in _NUMBERS else _OTHER_NUMBERS[word]
