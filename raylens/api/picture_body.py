"""Request bodies with one picture: JSON with a URL, or a multipart form with a file."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raylens.api.body import RecipeField, parse_object
from raylens.api.context import Context
from raylens.api.errors import (
    MAX_FIELD_CHARS,
    URLENCODED,
    from_validation,
    invalid_json,
    is_json,
    not_json,
)
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.types import PictureFile
from raylens.core.wire import SparseBody, Text

_FORM_TYPES = ("multipart/form-data", URLENCODED)
_MAX_URLENCODED_BYTES = 2**20
_MAX_FORM_FIELD_BYTES = 64 * 2**20
"""Bytes of a form field other than the file: enough for the limit on the whole body to decide."""


class PictureBody(SparseBody):
    """A body with a picture, which may also be the form's ``file`` next to the body's fields."""

    picture_field: ClassVar[str]
    """The field with the picture's URL."""
    accepts_base64: ClassVar[bool] = False
    """Whether that may also be raw base64."""
    model: str | None = None
    recipe: RecipeField = None


class ImageUrlBody(PictureBody):
    """A body whose picture is ``image_url``."""

    picture_field = "image_url"
    image_url: Text | None = None


BodyT = TypeVar("BodyT", bound=PictureBody)


async def read_body(
    http: Request, body_type: type[BodyT], context: Context
) -> tuple[BodyT, PictureFile | None]:
    """Return the body and its picture. Raises ``InvalidRequest`` or ``PayloadTooLarge``."""
    content_type = _content_type(http)
    upload: bytes | None = None
    if content_type.startswith(URLENCODED):
        _check_urlencoded(await http.body(), content_type)
    if content_type.startswith(_FORM_TYPES):
        fields, upload = await _read_form(http, body_type)
    else:
        fields = await _read_json(http)
    try:
        body = body_type.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from None
    field = body.picture_field
    text = getattr(body, field)
    if upload is not None:
        if text is not None:
            raise InvalidRequest(f"file: expected either file or {field}, not both", "file")
        return body, context.media.from_upload(upload, "file")
    if text is None:
        return body, None
    read = context.media.from_text if body.accepts_base64 else context.media.from_url
    return body, await read(text, field, context.fetch_deadline(http))


def require_picture(http: Request, body: PictureBody, picture: PictureFile | None) -> PictureFile:
    """Return ``picture``. Raises ``InvalidRequest`` if it is None."""
    if picture is None:
        is_form = _content_type(http).startswith(_FORM_TYPES)
        field = "file" if is_form else body.picture_field
        raise InvalidRequest(f"{field}: missing; expected a picture", field)
    return picture


def _check_urlencoded(body: bytes, content_type: str) -> None:
    """Raise an error for a body that is none, or dear to parse: that takes 0.2 s a megabyte."""
    if not _is_urlencoded(body):
        raise not_json(content_type)
    if len(body) > _MAX_URLENCODED_BYTES:
        message = (
            f"body: {len(body)} bytes of {URLENCODED}; the limit is {_MAX_URLENCODED_BYTES}:"
            " send larger pictures as JSON or multipart/form-data"
        )
        raise PayloadTooLarge(message, "body", _MAX_URLENCODED_BYTES, len(body))


def _is_urlencoded(body: bytes) -> bool:
    """Whether a body can be what its Content-Type says, and not the JSON or the file of a sender
    who left curl's default type."""
    start = body[:64].strip()
    return start[:1] != b"{" and all(0x20 < byte < 0x7F for byte in start)


def _content_type(http: Request) -> str:
    return http.headers.get("content-type", "").lower()


async def _read_json(http: Request) -> Any:
    try:
        return await http.json()
    except (ValueError, RecursionError) as error:
        if is_json(_content_type(http)):
            raise invalid_json(error) from None
        raise not_json(_content_type(http)) from None


async def _read_form(
    http: Request, body_type: type[PictureBody]
) -> tuple[dict[str, Any], bytes | None]:
    """Return a form's fields and the file's bytes.

    A form is flat: its fields of ``settings`` are moved into an object of that name, which the form
    may also send as JSON text.
    """
    try:
        async with http.form(
            max_files=1, max_fields=32, max_part_size=_MAX_FORM_FIELD_BYTES
        ) as form:
            upload = form.get("file")
            if upload is not None and not isinstance(upload, UploadFile):
                raise InvalidRequest("file: expected an uploaded file", "file")
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "file"}
            for name, value in fields.items():
                if isinstance(value, UploadFile):
                    name = name[:MAX_FIELD_CHARS]
                    raise InvalidRequest(f"{name}: expected the picture in the field file", name)
            data = None if upload is None else await upload.read()
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(
            f"body: decoding a form field failed: {type(error).__name__}", "body"
        ) from None
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"body: {error.detail}", "body") from None
    settings = {name: fields.pop(name) for name in _settings_fields(body_type) if name in fields}
    if settings:
        try:
            whole = parse_object(fields.get("settings") or "{}")
        except ValueError as error:
            raise InvalidRequest(f"settings: {error}", "settings") from None
        fields["settings"] = {**whole, **settings} if isinstance(whole, dict) else whole
    return fields, data


def _settings_fields(body_type: type[PictureBody]) -> list[str]:
    """Return the names of the fields in the body's ``settings``, if it has any."""
    field = body_type.model_fields.get("settings")
    settings_type = field.annotation if field is not None else None
    if isinstance(settings_type, type) and issubclass(settings_type, BaseModel):
        return list(settings_type.model_fields)
    return []


def describe_body(body_type: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is either JSON or a form."""
    schema = body_type.model_json_schema()
    schema = _inline(schema, schema.pop("$defs", {}))
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


def describe_json(body_type: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body of JSON, whatever its Content-Type."""
    schema = body_type.model_json_schema()
    schema = _inline(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with the definitions in the place of the references to them."""
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    if "$ref" in schema:
        definition = definitions[schema.pop("$ref").rpartition("/")[2]]
        schema = {**definition, **schema}
    return {key: _inline(item, definitions) for key, item in schema.items()}
