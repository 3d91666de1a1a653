"""Errors in the shape of each dialect."""

from __future__ import annotations

import json
import logging
import math
import re
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from raylens.api import sse
from raylens.api.paths import route_path
from raylens.api.routes import RouteTable
from raylens.core.errors import InvalidRequest, RaylensError

logger = logging.getLogger(__name__)

MAX_FIELD_CHARS = 160
"""Characters of a field's name in an error: the client can make up names of any length."""
URLENCODED = "application/x-www-form-urlencoded"
_JSON = re.compile(r"application/([\w.+-]+\+)?json\b")
_NOT_AN_OBJECT = ("model_type", "model_attributes_type")
_CODES = {
    408: "request_timeout",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
}
UNPROCESSABLE_PATHS = (
    "/v1/preprocess",
    "/api/v1/jobs",
    "/api/v1/watches",
    "/caption",
    "/describe",
    "/surveillance",
    "/model/",
    "/api/v1/pipeline",
    "/api/v1/plugins",
    "/api/v1/webrtc",
)
"""Paths of the dialects that answer an invalid request with 422 instead of 400."""
UNKNOWN_ROUTE = "/v1/chat"
"""An unknown route answers in the shape of this path's errors: most clients speak that dialect."""
OPENAI_PATHS = (
    "/v1/batches",
    "/v1/chat",
    "/v1/completions",
    "/v1/files",
    "/v1/models",
    "/v1/responses",
)


OLLAMA_PATHS = ("/api/chat", "/api/generate", "/api/ps", "/api/show", "/api/tags", "/api/version")


def dialect_path(path: str) -> str:
    """Return a path from where its dialect's paths begin, for error bodies.

    The proxy doesn't know the application's prefix.
    """
    starts = [path.find(known) for known in OPENAI_PATHS]
    starts += [len(path) - len(known) for known in OLLAMA_PATHS if path.endswith(known)]
    return path[min((start for start in starts if start >= 0), default=0) :]


def error_body(path: str, error: RaylensError) -> dict[str, Any]:
    """Return ``error`` in the shape of the dialect that ``path`` belongs to."""
    message = error.message.encode("utf-8", "replace").decode()
    if path in OLLAMA_PATHS:
        return {"error": message}
    if not path.startswith(OPENAI_PATHS):
        return {"detail": message}
    return _openai_error(error, message)


def _openai_error(error: RaylensError, message: str) -> dict[str, Any]:
    error_type = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {
        "error": {"message": message, "type": error_type, "param": error.field, "code": error.code}
    }


def error_event(path: str, error: RaylensError) -> str:
    """Return the last event of a stream that has begun and can't go on."""
    logger.warning("%s after the stream began: %s", error.code, error.message)
    return sse.event(error_body(path, error))


def error_response(path: str, error: RaylensError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    status = error.http_status
    if status == 400 and path.startswith(UNPROCESSABLE_PATHS):
        status = 422
    return JSONResponse(error_body(path, error), status, headers)


def add_error_handlers(app: FastAPI, routes: RouteTable) -> None:
    """Render every error in its dialect's shape. No error repeats the body that was sent."""

    @app.exception_handler(RaylensError)
    async def handle_raylens_error(request: Request, error: RaylensError) -> Response:
        if error.http_status >= 500:
            logger.warning("%s: %s", error.code, error.message)
        return error_response(route_path(request.scope), error)

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        path = route_path(request.scope)
        errors = error.errors()
        content_type = request.headers.get("content-type", "").lower()
        if _is_no_object(errors[0]) and not is_json(content_type):
            return error_response(path, not_json(content_type))
        return error_response(path, from_validation(errors))

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        path = route_path(request.scope)
        if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
            return error_response(path, invalid_json(error.__cause__))  # FastAPI read the body
        raylens_error = RaylensError(str(error.detail))
        raylens_error.http_status = error.status_code
        raylens_error.code = _CODES.get(error.status_code, "http_error")
        if error.status_code == 404:
            raylens_error.message = _describe_unknown_route(request, path)
            path = UNKNOWN_ROUTE
        response = error_response(path, raylens_error)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            # Starlette names the methods of the first route with this path only.
            response.headers["Allow"] = ", ".join(routes.methods_of(request.scope))
        return response

    @app.exception_handler(Exception)
    async def handle_unexpected_error(request: Request, error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error)
        raylens_error = RaylensError("internal error; see the server's log")
        return error_response(route_path(request.scope), raylens_error)


def _describe_unknown_route(request: Request, path: str) -> str:
    """Return a message with the route that the sender probably means."""
    known = [route for route in request.app.openapi()["paths"] if "{" not in route]
    root = request.scope.get("root_path", "").rstrip("/")
    message = f"no route {request.method} {root}{path[:MAX_FIELD_CHARS]}"
    for prefix in ("/v1", "/api/v1", "/api"):
        if prefix + path in known:
            return f"{message}; did you mean {root}{prefix}{path}? (add {prefix} to the base URL)"
    tail = path
    while (tail := "/" + tail.strip("/").partition("/")[2]) != "/":
        if tail in known:
            return f"{message}; did you mean {root}{tail}?"
    nearest = get_close_matches(path, known, 1)
    return f"{message}; {f'did you mean {root}{nearest[0]}?' if nearest else f'see {root}/docs'}"


def is_json(content_type: str) -> bool:
    """Whether a Content-Type, in lower case, is that of JSON."""
    return _JSON.match(content_type) is not None


def invalid_json(error: Exception) -> InvalidRequest:
    """Return the error for a body that Python's JSON parser refuses with ``error``."""
    match error:
        case json.JSONDecodeError():
            reason = f"{error.msg} at character {error.pos}"
        case UnicodeDecodeError():
            reason = f"byte {error.start} is not UTF-8"
        case RecursionError():
            reason = "nested too deep"
        case _:
            reason = "a number is too long"
    return InvalidRequest(f"body: not valid JSON ({reason})", "body")


def not_json(content_type: str) -> InvalidRequest:
    """Return the error for a body whose Content-Type is not that of JSON."""
    got = content_type[:MAX_FIELD_CHARS] or "none"
    if content_type.startswith(URLENCODED):
        got += ", which is curl's default for -d; add -H 'Content-Type: application/json'"
    return InvalidRequest(
        f"body: expected JSON with Content-Type: application/json; got {got}", "body"
    )


def _is_no_object(error: Any) -> bool:
    return error["type"] in _NOT_AN_OBJECT and error["loc"] in ((), ("body",))


def from_validation(errors: Any) -> InvalidRequest:
    """Return the first of pydantic's errors as ``field: message``, without the value itself."""
    first = errors[0]
    if _is_no_object(first):
        return InvalidRequest("body: expected a JSON object", "body")
    if first["type"] == "json_invalid":
        reason = f"{first['ctx']['error']} at character {first['loc'][-1]}"
        return InvalidRequest(f"body: not valid JSON ({reason})", "body")
    field = _field_of(first["loc"])[:MAX_FIELD_CHARS]
    message = str(first["msg"]).removeprefix("Value error, ")[: 2 * MAX_FIELD_CHARS]
    if first["type"] in _NOT_AN_OBJECT:
        message = "expected an object"
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidRequest(f"{field}: {message}{others}", field)


def _field_of(location: Any) -> str:
    """Return the dotted name of the field at pydantic's ``location``."""
    parts = [part for part in location if part not in ("body", "[key]")]
    # A tagged union adds its tag in front of the field, which has the same name.
    names = [
        str(part)
        for part, previous in zip(parts, ["", *parts], strict=False)
        if part != previous or isinstance(part, int)
    ]
    return ".".join(names) or "body"
