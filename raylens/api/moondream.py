"""The Moondream dialect: caption and query; detect, point and segment where a model can.

Format: the requests and answers of the ``moondream`` client 2.6.1, ``cloud_vl.py``. A picture may also come as the
multipart field ``file``, with the other fields beside it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from raylens.api import sse
from raylens.api.body import Body, Text
from raylens.api.context import Context
from raylens.api.errors import body_of
from raylens.api.picture_body import PictureBody, describe, read, required
from raylens.errors import InvalidRequest, RaylensError, UnsupportedTask
from raylens.types import Caption, Delta, Detect, Length, PictureFile, Point, Query, Task

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
        for field in ("reasoning", "spatial_refs"):
            if getattr(body, field):
                raise InvalidRequest(f"{field}: not supported by the models that are served here", field)
        context.check_text(len(body.question), "question")
        pictures = [] if picture is None else [picture]
        return await _answer(context, http, body, Query(body.question), pictures, "answer")

    @routes.post("/detect", summary="Find boxes", openapi_extra=describe(ObjectRequest))
    async def detect(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(context, body, Detect(body.object), picture)

    @routes.post("/point", summary="Find centers", openapi_extra=describe(ObjectRequest))
    async def point(http: Request) -> Any:
        body, picture = await read(http, ObjectRequest, context)
        return await _locate(context, body, Point(body.object), picture)

    @routes.post("/segment", summary="Not served: always 400", openapi_extra=describe(ObjectRequest))
    async def segment(http: Request) -> Any:
        raise UnsupportedTask("segment: no model that is served here can segment", "model")

    return routes


async def _answer(
    context: Context, http: Request, body: PictureRequest, task: Task, pictures: list[PictureFile], key: str
) -> Any:
    """The text of an answer as ``{key: text}``, or as a stream of chunks."""
    model = context.catalog.resolve(body.model, "moondream")
    sampling = context.sampling(
        max_tokens=body.settings.max_tokens,
        temperature=body.settings.temperature,
        top_p=body.settings.top_p,
    )
    request = context.request(http, model, task, sampling, body.recipe)
    deltas = context.service.generate(request, pictures)
    if body.stream:
        return await sse.stream(_events(deltas, http.url.path))
    texts: list[str] = []
    warnings: list[str] = []
    async with aclosing(deltas):
        async for delta in deltas:
            texts.append(delta.text)
            warnings.extend(delta.warnings)
    answer: dict[str, Any] = {key: "".join(texts)}
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


async def _locate(context: Context, body: ObjectRequest, task: Task, picture: PictureFile | None) -> Any:
    """No served family can detect or point; the answer says so, by the models' own list of tasks."""
    required(picture)
    name = context.catalog.resolve(body.model, "moondream")
    able = [
        info.name
        for info in [await context.service.model_info(model) for model in context.catalog.models]
        if task.name in info.tasks
    ]
    others = f"these can: {', '.join(able)}" if able else "no model that is served here can"
    raise UnsupportedTask(f"model: {name} can't {task.name}; {others}", "model")
