"""Errors as each dialect shows them."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from raylens.core.errors import InvalidRequest, RaylensError

logger = logging.getLogger(__name__)

_LONGEST = 160
"""Characters of a name in an error: names may be the sender's own."""
_NOT_AN_OBJECT = ("model_type", "model_attributes_type")
_CODES = {
    408: "request_timeout",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
}
UNPROCESSABLE_PATHS = ("/v1/preprocess", "/api/v1/jobs", "/caption/")
"""Dialects that answer bad input with 422 and not 400."""
OPENAI_PATHS = ("/v1/chat", "/v1/models")


def body_of(path: str, error: RaylensError) -> dict[str, Any]:
    """An error in the shape of the dialect that ``path`` belongs to."""
    message = error.message.encode("utf-8", "replace").decode()
    if not path.startswith(OPENAI_PATHS):
        return {"detail": message}
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": error.field, "code": error.code}}


def error_response(path: str, error: RaylensError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    status = error.http_status
    if status == 400 and path.startswith(UNPROCESSABLE_PATHS):
        status = 422
    return JSONResponse(body_of(path, error), status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Gives every error one of our own shapes; none repeats the body that was sent."""

    @app.exception_handler(RaylensError)
    async def ours(request: Request, error: RaylensError) -> Response:
        if error.http_status >= 500:
            logger.warning("%s: %s", error.code, error.message)
        return error_response(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        ours = RaylensError(str(error.detail))
        ours.http_status = error.status_code
        ours.code = _CODES.get(error.status_code, "http_error")
        response = error_response(request.url.path, ours)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        logger.error("unforeseen error", exc_info=error)
        return error_response(
            request.url.path, RaylensError("an internal error; the server's log tells more")
        )


def from_validation(errors: Any) -> InvalidRequest:
    """The first of pydantic's complaints, as ``field: message``; the value itself is left out."""
    first = errors[0]
    if first["type"] in _NOT_AN_OBJECT and len(first["loc"]) <= 1:
        return InvalidRequest(
            "body: a JSON object is needed, with Content-Type: application/json", "body"
        )
    if first["type"] == "json_invalid":
        where = f"{first['ctx']['error']} at character {first['loc'][-1]}"
        return InvalidRequest(f"body: not JSON ({where})", "body")
    location = [str(part) for part in first["loc"] if part != "body"]
    # A part of a tagged union stands twice: by its tag and by its name.
    field = (
        ".".join(
            part for part, before in zip(location, ["", *location], strict=False) if part != before
        )
        or "body"
    )
    field = field[:_LONGEST]
    message = str(first["msg"]).removeprefix("Value error, ")[: 2 * _LONGEST]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidRequest(f"{field}: {message}{more}", field)
