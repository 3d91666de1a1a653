"""The Moondream dialect: caption and query; detect, point and segment where a model can.

Format: the requests and answers of the ``moondream`` client 2.6.1, ``cloud_vl.py``. A picture may also come as the
multipart field ``file``, with the other fields beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raylens.api import sse
from raylens.api.body import Body, Text
from raylens.api.context import Context
from raylens.api.errors import body_of, from_validation
from raylens.errors import InvalidRequest, RaylensError, UnsupportedTask
from raylens.types import Caption, Delta, Detect, Length, Point, Query, Task

logger = logging.getLogger(__name__)

_MAX_FORM_FIELD = 64 * 2**20
"""Bytes of one form field that is not a file; the limit on the whole body is the one that counts."""


class Settings(Body):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_objects: Annotated[int, Field(ge=1)] | None = None


class PictureRequest(Body):
    """What all of the dialect's requests share."""

    image_url: Text | None = None
    model: str | None = None
    settings: Settings = Settings()
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


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


Shape = TypeVar("Shape", bound=PictureRequest)


def router(context: Context) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix="/v1", tags=["Moondream"])

    @routes.post("/caption", summary="Caption a picture", openapi_extra=_schema(CaptionRequest))
    async def caption(http: Request) -> Any:
        body, image = await _read(http, CaptionRequest, context)
        return await _answer(context, http, body, Caption(body.length), _required(image), "caption")

    @routes.post("/query", summary="Ask about a picture", openapi_extra=_schema(QueryRequest))
    async def query(http: Request) -> Any:
        body, image = await _read(http, QueryRequest, context)
        for field in ("reasoning", "spatial_refs"):
            if getattr(body, field):
                raise InvalidRequest(f"{field}: not supported by the models that are served here", field)
        context.check_text(len(body.question), "question")
        images = [] if image is None else [image]
        return await _answer(context, http, body, Query(body.question), images, "answer")

    @routes.post("/detect", summary="Find boxes", openapi_extra=_schema(ObjectRequest))
    async def detect(http: Request) -> Any:
        body, image = await _read(http, ObjectRequest, context)
        return await _locate(context, body, Detect(body.object), image)

    @routes.post("/point", summary="Find centers", openapi_extra=_schema(ObjectRequest))
    async def point(http: Request) -> Any:
        body, image = await _read(http, ObjectRequest, context)
        return await _locate(context, body, Point(body.object), image)

    @routes.post("/segment", summary="Not served: always 400", openapi_extra=_schema(ObjectRequest))
    async def segment(http: Request) -> Any:
        raise UnsupportedTask("segment: no model that is served here can segment", "model")

    return routes


async def _answer(
    context: Context, http: Request, body: PictureRequest, task: Task, images: list[bytes], key: str
) -> Any:
    """The text of an answer as ``{key: text}``, or as a stream of chunks."""
    model = context.catalog.resolve(body.model, "moondream")
    sampling = context.sampling(
        max_tokens=body.settings.max_tokens,
        temperature=body.settings.temperature,
        top_p=body.settings.top_p,
    )
    request = context.request(http, model, task, len(images), sampling)
    deltas = context.service.generate(request, images)
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
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                if delta.text:
                    yield sse.event({"chunk": delta.text})
                    begun = True
        except RaylensError as error:
            if not begun:
                raise
            logger.warning("%s, after the stream began: %s", error.code, error.message)
            yield sse.event(body_of(path, error))
            return
    yield sse.event({"completed": True})


async def _locate(context: Context, body: ObjectRequest, task: Task, image: bytes | None) -> Any:
    """No served family can detect or point; the answer says so, by the models' own list of tasks."""
    _required(image)
    name = context.catalog.resolve(body.model, "moondream")
    able = [
        info.name
        for info in [await context.service.model_info(model) for model in context.catalog.models]
        if task.name in info.tasks
    ]
    others = f"these can: {', '.join(able)}" if able else "no model that is served here can"
    raise UnsupportedTask(f"model: {name} can't {task.name}; {others}", "model")


def _required(image: bytes | None) -> list[bytes]:
    if image is None:
        raise InvalidRequest("image_url: a picture is needed", "image_url")
    return [image]


async def _read(http: Request, shape: type[Shape], context: Context) -> tuple[Shape, bytes | None]:
    """The body, from JSON or from a multipart form, and its picture."""
    is_form = (
        http.headers.get("content-type", "")
        .lower()
        .startswith(("multipart/form-data", "application/x-www-form-urlencoded"))
    )
    fields, upload = await _form(http) if is_form else (await _json(http), None)
    try:
        body = shape.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from None
    if upload is not None:
        if body.image_url is not None:
            raise InvalidRequest("file: give either a file or an image_url", "file")
        return body, context.media.from_upload(upload, "file")
    if body.image_url is None:
        return body, None
    return body, await context.media.from_url(body.image_url, "image_url")


async def _json(http: Request) -> Any:
    try:
        return await http.json()
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"body: not JSON ({error.msg} at character {error.pos})", "body") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body: not JSON that can be read ({type(error).__name__})", "body") from None


async def _form(http: Request) -> tuple[dict[str, Any], bytes | None]:
    """A form's fields, those of ``settings`` beside the others, and the file's bytes."""
    try:
        async with http.form(max_files=1, max_fields=32, max_part_size=_MAX_FORM_FIELD) as form:
            upload = form.get("file")
            if upload is not None and not isinstance(upload, UploadFile):
                raise InvalidRequest("file: an uploaded file is needed", "file")
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "file"}
            data = None if upload is None else await upload.read()
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(f"body: a field that can't be decoded ({type(error).__name__})", "body") from None
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"body: {error.detail}", "body") from None
    settings = {name: fields.pop(name) for name in Settings.model_fields if name in fields}
    if settings:
        fields["settings"] = settings
    return fields, data


def _schema(shape: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that may be JSON or a form."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    for definition in schema.pop("$defs", {}).values():
        _inline(schema, definition)
    form = {**schema, "properties": {**schema["properties"], "file": {"type": "string", "format": "binary"}}}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
        }
    }


def _inline(schema: dict[str, Any], definition: dict[str, Any]) -> None:
    """Puts a definition where the schema's properties refer to it."""
    reference = f"#/components/schemas/{definition['title']}"
    for name, value in schema["properties"].items():
        if value.get("$ref") == reference:
            schema["properties"][name] = {**definition, **{k: v for k, v in value.items() if k != "$ref"}}
