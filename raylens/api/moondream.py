"""The Moondream dialect: caption and query; detect and point where a model can.

Format: the requests and answers of the ``moondream`` client 2.6.1, ``cloud_vl.py``. A picture may
also come as the multipart field ``file``, with the other fields beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field

from raylens.api import sse
from raylens.api.context import Context
from raylens.api.errors import body_of
from raylens.api.grounding_json import findings_as_json, reasoning_as_json
from raylens.api.model_selection import required_capability, select_model
from raylens.api.picture_body import PictureBody, describe, read, required
from raylens.core.errors import InvalidRequest, RaylensError, UnsupportedTask
from raylens.core.types import (
    MAX_OBJECTS,
    REASONING,
    Caption,
    Delta,
    Detect,
    Length,
    Location,
    PictureFile,
    Point,
    Query,
    Region,
    Task,
    VisionRequest,
)
from raylens.core.wire import MAX_OBJECTS_ASKED, Body, Text

logger = logging.getLogger(__name__)


MAX_PLACES = 64
Share = Annotated[float, Field(ge=0, le=1)]
"""Of the picture's width or height."""


def _json_text(value: Any) -> Any:
    """A form can hold the list as text only."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise ValueError("a list of points and boxes is needed, and this is not JSON") from None


Refs = Annotated[
    Annotated[list[list[Share]], Field(max_length=MAX_PLACES)] | None,
    BeforeValidator(_json_text),
]
"""Points [x, y] and boxes [x_min, y_min, x_max, y_max] that a question is about."""


class MoondreamSettings(Body):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_ASKED)] = MAX_OBJECTS


class PictureRequest(PictureBody):
    """What all of the dialect's requests share."""

    settings: MoondreamSettings = MoondreamSettings()
    stream: bool = False


class CaptionRequest(PictureRequest):
    length: Length = Length.NORMAL


class QueryRequest(PictureRequest):
    question: Annotated[Text, Field(min_length=1)]
    reasoning: bool = False
    spatial_refs: Refs = None


class ObjectRequest(PictureRequest):
    """The request of detect, point and segment."""

    object: Annotated[Text, Field(min_length=1)]
    spatial_refs: Refs = None


def router(context: Context) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix="/v1", tags=["Moondream"])

    @routes.post("/caption", summary="Caption a picture", openapi_extra=describe(CaptionRequest))
    async def caption(http: Request) -> Any:
        body, picture = await read(http, CaptionRequest, context)
        return await _answer(
            context, http, body, Caption(body.length), [required(picture)], "caption"
        )

    @routes.post("/query", summary="Ask about a picture", openapi_extra=describe(QueryRequest))
    async def query(http: Request) -> Any:
        body, picture = await read(http, QueryRequest, context)
        context.check_text(len(body.question), "question")
        pictures = [] if picture is None else [picture]
        task = Query(
            body.question,
            body.reasoning,
            _places(body.spatial_refs or [], has_picture=bool(pictures)),
        )
        return await _answer(context, http, body, task, pictures, "answer")

    @routes.post("/detect", summary="Find boxes", openapi_extra=describe(ObjectRequest))
    async def detect(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(
            context, http, body, Detect(body.object, body.settings.max_objects), required(picture)
        )

    @routes.post("/point", summary="Find centers", openapi_extra=describe(ObjectRequest))
    async def point(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(
            context, http, body, Point(body.object, body.settings.max_objects), required(picture)
        )

    @routes.post(
        "/segment", summary="Not served: always 400", openapi_extra=describe(ObjectRequest)
    )
    async def segment(http: Request) -> Any:
        raise UnsupportedTask("segment: no model that is served here can segment", "model")

    return routes


def _places(refs: list[list[float]], *, has_picture: bool) -> tuple[Location | Region, ...]:
    """Raises ``InvalidRequest`` for what is neither a point nor a box, and where there is no
    picture."""
    if refs and not has_picture:
        raise InvalidRequest(
            "spatial_refs: there is no picture that they could lie in", "spatial_refs"
        )
    places: list[Location | Region] = []
    for number, ref in enumerate(refs):
        field = f"spatial_refs.{number}"
        if len(ref) not in (2, 4):
            raise InvalidRequest(f"{field}: {len(ref)} numbers; a point has 2, and a box 4", field)
        if len(ref) == 2:
            places.append(Location(*ref))
        elif ref[0] < ref[2] and ref[1] < ref[3]:
            places.append(Region(*ref))
        else:
            raise InvalidRequest(
                f"{field}: a box is x_min, y_min, x_max, y_max, and has some area", field
            )
    return tuple(places)


def _refuse(body: PictureRequest, *fields: str) -> None:
    """Raises ``InvalidRequest`` for the first of these fields that asks for something."""
    for field in fields:
        if getattr(body, field):
            raise InvalidRequest(
                f"{field}: not supported by the models that are served here", field
            )


async def _answer(
    context: Context,
    http: Request,
    body: PictureRequest,
    task: Task,
    pictures: list[PictureFile],
    key: str,
) -> Any:
    """The text of an answer as ``{key: text}``, or as a stream of chunks."""
    if required_capability(task) == REASONING:
        model = await select_model(context, body.model, "moondream", task)
    else:
        model = context.catalog.resolve(body.model, "moondream")
    request = _request(context, http, body, model, task, body.settings.temperature)
    deltas = context.service.generate(request, pictures)
    if body.stream:
        return await sse.stream(_events(deltas, http.url.path))
    whole = await _whole(deltas)
    answer = {key: "".join(delta.text for delta in whole)}
    return _with_warnings({**_thoughts(whole), **answer}, whole)


async def _locate(
    context: Context, http: Request, body: ObjectRequest, task: Detect | Point, picture: PictureFile
) -> dict[str, Any]:
    """The boxes or points."""
    _refuse(body, "stream", "spatial_refs")
    context.check_text(len(body.object), "object")
    model = await select_model(context, body.model, "moondream", task)
    request = _request(context, http, body, model, task, body.settings.temperature or 0.0)
    whole = await _whole(context.service.generate(request, [picture]))
    found = whole[-1].findings if whole else None
    return _with_warnings(findings_as_json(found), whole)


def _request(
    context: Context,
    http: Request,
    body: PictureRequest,
    model: str,
    task: Task,
    temperature: float | None,
) -> VisionRequest:
    settings = body.settings
    sampling = context.sampling(
        max_tokens=settings.max_tokens, temperature=temperature, top_p=settings.top_p
    )
    return context.request(http, model, task, sampling, body.recipe, body.stream)


async def _whole(deltas: AsyncGenerator[Delta, None]) -> list[Delta]:
    async with aclosing(deltas):
        return [delta async for delta in deltas]


def _thoughts(deltas: list[Delta]) -> dict[str, Any]:
    """What was thought before the answer, where the request wanted to know."""
    reasoning = deltas[-1].findings and deltas[-1].findings.reasoning if deltas else None
    return {"reasoning": reasoning_as_json(reasoning)} if reasoning else {}


def _with_warnings(answer: dict[str, Any], deltas: list[Delta]) -> dict[str, Any]:
    warnings = [warning for delta in deltas for warning in delta.warnings]
    return {**answer, "warnings": warnings} if warnings else answer


async def _events(deltas: AsyncGenerator[Delta, None], path: str) -> AsyncGenerator[str, None]:
    """The client can't show an error after the first chunk: the stream then ends without
    ``completed``. What was thought comes with that."""
    begun = False
    warnings: list[str] = []
    last: list[Delta] = []
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                warnings.extend(delta.warnings)
                last = [delta]
                if delta.text:
                    yield sse.event({"chunk": delta.text})
                    begun = True
        except RaylensError as error:
            if not begun:
                raise
            logger.warning("%s, after the stream began: %s", error.code, error.message)
            yield sse.event(body_of(path, error))
            return
    end = {"completed": True, **_thoughts(last)}
    yield sse.event({**end, "warnings": warnings} if warnings else end)
