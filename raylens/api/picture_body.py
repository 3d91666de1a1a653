"""Bodies with one picture: JSON with a data URL, or a multipart form with a file."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.api.errors import from_validation
from raylens.core.errors import InvalidRequest
from raylens.core.types import PictureFile
from raylens.core.wire import Body, Text

_MAX_FORM_FIELD = 64 * 2**20
"""Bytes of one form field that is not a file; the limit on the whole body is the one that counts."""


class PictureBody(Body):
    """A body whose picture stands in ``image_url``, or comes beside it as the form's ``file``."""

    image_url: Text | None = None
    model: str | None = None
    recipe: RecipeField = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return (
            {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        )


Shape = TypeVar("Shape", bound=PictureBody)


async def read(
    http: Request, shape: type[Shape], context: Context
) -> tuple[Shape, PictureFile | None]:
    """The body and its picture. Raises ``InvalidRequest`` and ``PayloadTooLarge``."""
    is_form = (
        http.headers.get("content-type", "")
        .lower()
        .startswith(("multipart/form-data", "application/x-www-form-urlencoded"))
    )
    fields, upload = await _form(http, shape) if is_form else (await _json(http), None)
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


def required(picture: PictureFile | None) -> PictureFile:
    if picture is None:
        raise InvalidRequest("image_url: a picture is needed", "image_url")
    return picture


async def _json(http: Request) -> Any:
    try:
        return await http.json()
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"body: not JSON ({error.msg} at character {error.pos})", "body"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"body: not JSON that can be read ({type(error).__name__})", "body"
        ) from None


async def _form(http: Request, shape: type[PictureBody]) -> tuple[dict[str, Any], bytes | None]:
    """A form's fields, those of a ``settings`` object beside the others, and the file's bytes."""
    try:
        async with http.form(max_files=1, max_fields=32, max_part_size=_MAX_FORM_FIELD) as form:
            upload = form.get("file")
            if upload is not None and not isinstance(upload, UploadFile):
                raise InvalidRequest("file: an uploaded file is needed", "file")
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "file"}
            data = None if upload is None else await upload.read()
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(
            f"body: a field that can't be decoded ({type(error).__name__})", "body"
        ) from None
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"body: {error.detail}", "body") from None
    nested = shape.model_fields.get("settings")
    if (
        nested is not None
        and isinstance(nested.annotation, type)
        and issubclass(nested.annotation, BaseModel)
    ):
        settings = {
            name: fields.pop(name) for name in nested.annotation.model_fields if name in fields
        }
        fields |= {"settings": settings} if settings else {}
    return fields, data


def describe(shape: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that may be JSON or a form."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    for definition in schema.pop("$defs", {}).values():
        _inline(schema, definition)
    form = {
        **schema,
        "properties": {**schema["properties"], "file": {"type": "string", "format": "binary"}},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                "multipart/form-data": {"schema": form},
            },
        }
    }


def _inline(schema: dict[str, Any], definition: dict[str, Any]) -> None:
    """Puts a definition where the schema's properties refer to it."""
    reference = f"#/components/schemas/{definition['title']}"
    for name, value in schema["properties"].items():
        if value.get("$ref") == reference:
            schema["properties"][name] = {
                **definition,
                **{k: v for k, v in value.items() if k != "$ref"},
            }
