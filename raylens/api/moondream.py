"""The Moondream dialect: caption, query, and, for models that support them, detect and point.

Format: the requests and answers of the ``moondream`` client 2.6.1, ``cloud_vl.py``. A picture may
also be the multipart field ``file``, next to the other fields.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field

from raylens.api import sse
from raylens.api.answers import EVENTS, answers
from raylens.api.answers import pictures as shapes
from raylens.api.body import parse_object
from raylens.api.context import Context
from raylens.api.errors import error_event
from raylens.api.grounding_json import findings_as_json, reasoning_as_json
from raylens.api.model_selection import select_model
from raylens.api.openai_request import StreamOptions
from raylens.api.paths import route_path
from raylens.api.picture_body import ImageUrlBody, describe_body, read_body, require_picture
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
    Usage,
    VisionRequest,
    required_capability,
)
from raylens.core.wire import MAX_OBJECTS_LIMIT, LenientBody, Text, parse_json_text

MAX_SPATIAL_REFS = 64
Fraction = Annotated[float, Field(ge=0, le=1)]
"""Fraction of the picture's width or height."""


def _parse_json(value: Any) -> Any:
    """Parse a list that a form sends as text. Raises ``ValueError`` if it is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json_text(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"expected a list of points and boxes; {error}") from None


SpatialRefs = Annotated[
    Annotated[
        list[Annotated[list[Fraction], Field(max_length=4)]], Field(max_length=MAX_SPATIAL_REFS)
    ]
    | None,
    BeforeValidator(_parse_json),
]
"""Points [x, y] and boxes [x_min, y_min, x_max, y_max] that a question is about."""


class RequestSettings(LenientBody):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 means greedy."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_LIMIT)] = MAX_OBJECTS


class PictureRequest(ImageUrlBody):
    """Fields of every request of the dialect."""

    settings: Annotated[RequestSettings, BeforeValidator(parse_object)] = RequestSettings()
    stream: bool = False
    stream_options: Annotated[StreamOptions, BeforeValidator(parse_object)] = StreamOptions()
    """OpenAI's: with ``include_usage``, the end of a stream counts tokens."""


class CaptionRequest(PictureRequest):
    length: Length = Length.NORMAL


class QueryRequest(PictureRequest):
    question: Annotated[Text, Field(min_length=1)]
    reasoning: bool = False
    spatial_refs: SpatialRefs = None


class ObjectRequest(PictureRequest):
    """Body of detect, point and segment requests."""

    object: Annotated[Text, Field(min_length=1)]
    spatial_refs: SpatialRefs = None


def router(context: Context) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(prefix="/v1", tags=["Moondream"])

    @routes.post(
        "/caption",
        summary="Caption a picture",
        openapi_extra=describe_body(CaptionRequest),
        **answers(shapes.CaptionAnswer, EVENTS),
    )
    async def caption(http: Request) -> Any:
        body, picture = await read_body(http, CaptionRequest, context)
        pictures = [require_picture(http, body, picture)]
        return await _answer_text(context, http, body, Caption(body.length), pictures, "caption")

    @routes.post(
        "/query",
        summary="Ask a question about a picture",
        openapi_extra=describe_body(QueryRequest),
        **answers(shapes.QueryAnswer, EVENTS),
    )
    async def query(http: Request) -> Any:
        body, picture = await read_body(http, QueryRequest, context)
        context.check_text_length(len(body.question), "question")
        pictures = [] if picture is None else [picture]
        refs = _parse_spatial_refs(body.spatial_refs or [], has_picture=bool(pictures))
        task = Query(body.question, body.reasoning, refs)
        return await _answer_text(context, http, body, task, pictures, "answer")

    @routes.post(
        "/detect",
        summary="Find the boxes of an object",
        openapi_extra=describe_body(ObjectRequest),
        **answers(shapes.Findings),
    )
    async def detect(http: Request) -> Any:
        body, picture = await read_body(http, ObjectRequest, context)
        task = Detect(body.object, body.settings.max_objects)
        return await _answer_findings(
            context, http, body, task, require_picture(http, body, picture)
        )

    @routes.post(
        "/point",
        summary="Find the centers of an object",
        openapi_extra=describe_body(ObjectRequest),
        **answers(shapes.Points),
    )
    async def point(http: Request) -> Any:
        body, picture = await read_body(http, ObjectRequest, context)
        task = Point(body.object, body.settings.max_objects)
        return await _answer_findings(
            context, http, body, task, require_picture(http, body, picture)
        )

    @routes.post(
        "/segment",
        summary="Not supported: always 400",
        openapi_extra=describe_body(ObjectRequest),
        **answers(),
    )
    async def segment(http: Request) -> Any:
        raise UnsupportedTask("segment: not supported by any served model", "model")

    return routes


def _parse_spatial_refs(
    refs: list[list[float]], *, has_picture: bool
) -> tuple[Location | Region, ...]:
    """Return the points and boxes of ``refs``.

    Raises ``InvalidRequest`` if a list is neither, or if there is no picture to refer to.
    """
    if refs and not has_picture:
        raise InvalidRequest("spatial_refs: the picture is missing", "spatial_refs")
    parsed: list[Location | Region] = []
    for number, ref in enumerate(refs):
        field = f"spatial_refs.{number}"
        if len(ref) not in (2, 4):
            raise InvalidRequest(
                f"{field}: {len(ref)} numbers; expected 2 for a point or 4 for a box", field
            )
        if len(ref) == 2:
            parsed.append(Location(*ref))
        elif ref[0] < ref[2] and ref[1] < ref[3]:
            parsed.append(Region(*ref))
        else:
            raise InvalidRequest(
                f"{field}: expected a box of positive area, [x_min, y_min, x_max, y_max]", field
            )
    return tuple(parsed)


def _refuse(body: PictureRequest, *fields: str) -> None:
    """Raise ``InvalidRequest`` for the first of ``fields`` that is set."""
    for field in fields:
        if getattr(body, field):
            raise InvalidRequest(f"{field}: not supported by any served model", field)


async def _answer_text(
    context: Context,
    http: Request,
    body: PictureRequest,
    task: Task,
    pictures: list[PictureFile],
    key: str,
) -> Any:
    """Return the answer's text as ``{key: text}``, or as a stream of chunks."""
    if required_capability(task) == REASONING:
        model = await select_model(context, body.model, "moondream", task)
    else:
        model = context.catalog.resolve(body.model, "moondream")
    request = _build_request(context, http, body, model, task, body.settings.temperature)
    deltas = context.service.generate(request, pictures)
    if body.stream:
        include_usage = body.stream_options.include_usage
        return await sse.stream(_events(deltas, route_path(http.scope), include_usage))
    answer = await _collect(deltas)
    text = "".join(delta.text for delta in answer)
    return _with_warnings({**_reasoning(answer), key: text}, answer)


async def _answer_findings(
    context: Context, http: Request, body: ObjectRequest, task: Detect | Point, picture: PictureFile
) -> dict[str, Any]:
    """Return the answer's boxes or points."""
    _refuse(body, "stream", "spatial_refs")
    context.check_text_length(len(body.object), "object")
    model = await select_model(context, body.model, "moondream", task)
    temperature = body.settings.temperature or 0.0
    request = _build_request(context, http, body, model, task, temperature)
    answer = await _collect(context.service.generate(request, [picture]))
    findings = answer[-1].findings if answer else None
    return _with_warnings(findings_as_json(findings), answer)


def _build_request(
    context: Context,
    http: Request,
    body: PictureRequest,
    model: str,
    task: Task,
    temperature: float | None,
) -> VisionRequest:
    settings = body.settings
    sampling = context.build_sampling(
        max_tokens=settings.max_tokens,
        temperature=temperature,
        top_p=settings.top_p,
        section="settings.",
    )
    return context.build_request(http, model, task, sampling, body.recipe, body.stream)


async def _collect(deltas: AsyncGenerator[Delta, None]) -> list[Delta]:
    async with aclosing(deltas):
        return [delta async for delta in deltas]


def _reasoning(deltas: list[Delta]) -> dict[str, Any]:
    """Return ``{"reasoning": …}``, or an empty object if the answer has no reasoning."""
    findings = deltas[-1].findings if deltas else None
    if findings is None or findings.reasoning is None:
        return {}
    return {"reasoning": reasoning_as_json(findings.reasoning)}


def _with_warnings(answer: dict[str, Any], deltas: list[Delta]) -> dict[str, Any]:
    warnings = [warning for delta in deltas for warning in delta.warnings]
    return {**answer, "warnings": warnings} if warnings else answer


async def _events(
    deltas: AsyncGenerator[Delta, None], path: str, include_usage: bool
) -> AsyncGenerator[str, None]:
    """Yield the text in chunks, then ``completed`` with the reasoning, the usage and the warnings.

    The client can't show an error after the first chunk. A stream that fails later ends with the
    error and without ``completed``.
    """
    has_begun = False
    warnings: list[str] = []
    last: list[Delta] = []
    usage = Usage(0, 0)
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                warnings.extend(delta.warnings)
                last = [delta]
                usage = delta.usage or usage
                if delta.text:
                    yield sse.event({"chunk": delta.text})
                    has_begun = True
        except RaylensError as error:
            if not has_begun:
                raise
            yield error_event(path, error)
            return
    end = {"completed": True, **_reasoning(last)}
    if include_usage:
        end["usage"] = asdict(usage)
    yield sse.event({**end, "warnings": warnings} if warnings else end)
