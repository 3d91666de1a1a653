"""The Moondream dialect: caption and query; detect and point where a model can.

Format: the requests and answers of the ``moondream`` client 2.6.1, ``cloud_vl.py``. A picture may also come as the
multipart field ``file``, with the other fields beside it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from raylens.api import sse
from raylens.api.body import Body, Text
from raylens.api.context import Context
from raylens.api.errors import body_of
from raylens.api.picture_body import PictureBody, describe, read, required
from raylens.errors import InvalidRequest, ModelFailed, ModelNotLoaded, RaylensError, UnsupportedTask
from raylens.types import Caption, Delta, Detect, Length, ModelInfo, PictureFile, Point, Query, Task, VisionRequest

logger = logging.getLogger(__name__)


class Settings(Body):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_objects: Annotated[int, Field(ge=1)] | None = None


class PictureRequest(PictureBody):
    """What all of the dialect's requests share."""

    settings: Settings = Settings()
    stream: bool = False


class CaptionRequest(PictureRequest):
    length: Length = Length.NORMAL


class QueryRequest(PictureRequest):
    question: Annotated[Text, Field(min_length=1)]
    reasoning: bool = False
    spatial_refs: list[list[float]] | None = None


class ObjectRequest(PictureRequest):
    """The request of detect, point and segment."""

    object: Annotated[Text, Field(min_length=1)]
    spatial_refs: list[list[float]] | None = None


def router(context: Context) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix="/v1", tags=["Moondream"])

    @routes.post("/caption", summary="Caption a picture", openapi_extra=describe(CaptionRequest))
    async def caption(http: Request) -> Any:
        body, picture = await read(http, CaptionRequest, context)
        return await _answer(context, http, body, Caption(body.length), [required(picture)], "caption")

    @routes.post("/query", summary="Ask about a picture", openapi_extra=describe(QueryRequest))
    async def query(http: Request) -> Any:
        body, picture = await read(http, QueryRequest, context)
        _refuse(body, "reasoning", "spatial_refs")
        context.check_text(len(body.question), "question")
        pictures = [] if picture is None else [picture]
        return await _answer(context, http, body, Query(body.question), pictures, "answer")

    @routes.post("/detect", summary="Find boxes", openapi_extra=describe(ObjectRequest))
    async def detect(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(context, http, body, Detect(body.object), required(picture), "objects")

    @routes.post("/point", summary="Find centers", openapi_extra=describe(ObjectRequest))
    async def point(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(context, http, body, Point(body.object), required(picture), "points")

    @routes.post("/segment", summary="Not served: always 400", openapi_extra=describe(ObjectRequest))
    async def segment(http: Request) -> Any:
        raise UnsupportedTask("segment: no model that is served here can segment", "model")

    return routes


def _refuse(body: PictureRequest, *fields: str) -> None:
    """Raises ``InvalidRequest`` for the first of these fields that asks for something."""
    for field in fields:
        if getattr(body, field):
            raise InvalidRequest(f"{field}: not supported by the models that are served here", field)


async def _answer(
    context: Context, http: Request, body: PictureRequest, task: Task, pictures: list[PictureFile], key: str
) -> Any:
    """The text of an answer as ``{key: text}``, or as a stream of chunks."""
    model = context.catalog.resolve(body.model, "moondream")
    request = _request(context, http, body, model, task, body.settings.temperature)
    deltas = context.service.generate(request, pictures)
    if body.stream:
        return await sse.stream(_events(deltas, http.url.path))
    whole = await _whole(deltas)
    return _with_warnings({key: "".join(delta.text for delta in whole)}, whole)


async def _locate(
    context: Context, http: Request, body: ObjectRequest, task: Detect | Point, picture: PictureFile, key: str
) -> dict[str, Any]:
    """The boxes or points as ``{key: [...]}``."""
    _refuse(body, "stream", "spatial_refs")
    context.check_text(len(body.object), "object")
    model = await _able(context, body.model, task)
    request = _request(context, http, body, model, task, body.settings.temperature or 0.0)
    whole = await _whole(context.service.generate(request, [picture]))
    last = whole[-1] if whole else Delta()
    places = last.regions if isinstance(task, Detect) else last.locations
    if places is None:
        raise ModelFailed("the answer ended early")
    return _with_warnings({key: [asdict(place) for place in places[: body.settings.max_objects]]}, whole)


async def _able(context: Context, name: str | None, task: Task) -> str:
    """The model that is named, or the default; where none is named and that can't do the task, the first that can.

    Raises ``UnsupportedTask``, which names the models that can, and ``ModelNotLoaded`` where one that is down might.
    """
    wanted = context.catalog.resolve(name, "moondream")
    # Only where it must: a model that hangs would keep all others waiting.
    infos = await context.model_infos([wanted])
    if not _can(infos[wanted], task):
        infos = await context.model_infos(context.catalog.models)
    able = [model for model, info in infos.items() if _can(info, task)]
    if wanted in able:
        return wanted
    if able and not name:
        return able[0]
    raise _unable(wanted, task, able, infos, is_named=bool(name))


def _unable(
    wanted: str, task: Task, able: list[str], infos: dict[str, ModelInfo | ModelNotLoaded], *, is_named: bool
) -> RaylensError:
    down = {model: info for model, info in infos.items() if isinstance(info, ModelNotLoaded)}
    for model, error in down.items():
        if model == wanted or not is_named:
            return error
    nobody = f"no model that is {'up' if down else 'served here'} can"
    others = f"these can: {', '.join(able)}" if able else nobody
    return UnsupportedTask(f"model: {wanted} can't {task.name}; {others}", "model")


def _can(info: ModelInfo | ModelNotLoaded, task: Task) -> bool:
    return isinstance(info, ModelInfo) and task.name in info.tasks


def _request(
    context: Context, http: Request, body: PictureRequest, model: str, task: Task, temperature: float | None
) -> VisionRequest:
    settings = body.settings
    sampling = context.sampling(max_tokens=settings.max_tokens, temperature=temperature, top_p=settings.top_p)
    return context.request(http, model, task, sampling, body.recipe, body.stream)


async def _whole(deltas: AsyncGenerator[Delta, None]) -> list[Delta]:
    async with aclosing(deltas):
        return [delta async for delta in deltas]


def _with_warnings(answer: dict[str, Any], deltas: list[Delta]) -> dict[str, Any]:
    warnings = [warning for delta in deltas for warning in delta.warnings]
    return {**answer, "warnings": warnings} if warnings else answer


async def _events(deltas: AsyncGenerator[Delta, None], path: str) -> AsyncGenerator[str, None]:
    """The client can't show an error after the first chunk: the stream then ends without ``completed``."""
    begun = False
    warnings: list[str] = []
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                warnings.extend(delta.warnings)
                if delta.text:
                    yield sse.event({"chunk": delta.text})
                    begun = True
        except RaylensError as error:
            if not begun:
                raise
            logger.warning("%s, after the stream began: %s", error.code, error.message)
            yield sse.event(body_of(path, error))
            return
    yield sse.event({"completed": True, "warnings": warnings} if warnings else {"completed": True})
