"""The API's description, /openapi.json: every route's answers, and every error that it may give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from raylens.api.access_log import TIMING_HEADER
from raylens.api.answers import ollama, openai, services
from raylens.api.auth import JOB_PATHS, is_open_path
from raylens.api.errors import OLLAMA_PATHS, OPENAI_PATHS, UNPROCESSABLE_PATHS
from raylens.api.middleware import REQUEST_ID_HEADER
from raylens.api.request_body import TIMEOUT_HEADER

REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is invalid; the message names the field and the limit",
    401: "The key is missing or unknown",
    403: "The key, or the page that sends the request, may not do this",
    404: "There is no such model, job, file, batch or session",
    408: "The body did not arrive in time",
    409: "The request contradicts the current state",
    413: "The body or a picture is too large",
    415: "A picture or the body has an unsupported format",
    421: "The server has another name than the request's Host",
    422: "The request is invalid; the message names the field and the limit",
    429: "The client or the queue has reached a limit; Retry-After says when to try again",
    500: "The model failed on this request",
    503: "The model isn't loaded, or the server is overloaded; Retry-After says when to try again",
    504: "The deadline passed before the answer was complete",
    507: "There is no room to store what was sent",
}
_MODEL_PATHS = ("/model/info", "/vram_status", "/v1/models/{name}", "/api/v1/pipeline/status")
"""Routes that ask for a model, which may be unknown or not loaded."""
_LIMITED = (429, 503, 507)
"""Statuses whose answers have ``Retry-After``."""


def describe(app: FastAPI, has_keys: bool, max_timeout_s: float) -> None:
    """Complete the description of an application that has all of its routes.

    ``max_timeout_s`` is the upper bound of ``X-Request-Timeout``.
    """

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _complete(app, has_keys, max_timeout_s)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(app: FastAPI, has_keys: bool, max_timeout_s: float) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for error in (openai.Error, ollama.Error, services.Error):
        described = error.model_json_schema(ref_template=REFERENCE)
        schemas.update(described.pop("$defs", {}))
        schemas[_error_name(error)] = described
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _add_errors(operation, method.upper(), path, has_keys)
            _add_headers(operation, method.upper(), max_timeout_s)
            if has_keys and not is_open_path(path):
                operation["security"] = [{name: []} for name in _SECURITY]
    if has_keys:
        components["securitySchemes"] = _SECURITY
    return schema


_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "X-Moondream-Auth": {"type": "apiKey", "in": "header", "name": "X-Moondream-Auth"},
}


def _error_name(model: type[BaseModel]) -> str:
    names = {openai.Error: "OpenAIError", ollama.Error: "OllamaError"}
    return names.get(model, "Error")


def _error_of(path: str) -> type[BaseModel]:
    """Return the shape of errors that :func:`raylens.api.errors.error_body` makes."""
    if path in OLLAMA_PATHS:
        return ollama.Error
    return openai.Error if path.startswith(OPENAI_PATHS) else services.Error


def _add_errors(operation: dict[str, Any], method: str, path: str, has_keys: bool) -> None:
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if not responses.get("200", {"content": True}).get("content"):
        del responses["200"]  # a route that only refuses
    reference = {"$ref": REFERENCE.format(model=_error_name(_error_of(path)))}
    for status in _statuses(method, path, has_keys):
        error: dict[str, Any] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": reference}},
        }
        if status in _LIMITED:
            retry = {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            error["headers"] = {"Retry-After": retry}
        responses.setdefault(str(status), error)
    operation["responses"] = dict(sorted(responses.items()))


def _statuses(method: str, path: str, has_keys: bool) -> Iterator[int]:
    """Yield the statuses of errors that a route may give."""
    yield 422 if path.startswith(UNPROCESSABLE_PATHS) else 400
    yield 421
    if has_keys and not is_open_path(path):
        yield from (401, 403)
    if method != "GET":
        yield from (403, 408, 413, 415, 429, 503, 504)
    if path.startswith(JOB_PATHS):
        yield from (404, 409, 503)
        if method in ("POST", "PUT"):
            yield from (429, 507)
        if path.endswith("/events"):
            yield 429
    elif method == "POST":
        yield from (404, 500)
    elif path in _MODEL_PATHS or path.endswith("/{session_id}"):
        yield from (404, 503)


def _add_headers(operation: dict[str, Any], method: str, max_timeout_s: float) -> None:
    """Add the headers that every request may have."""
    request_id = {"type": "string", "pattern": "^[!-~]{0,128}$"}
    seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": max_timeout_s}
    headers: list[tuple[str, dict[str, Any], str]] = [
        (REQUEST_ID_HEADER, request_id, "The request's id, in the answer and in every log line"),
        (TIMING_HEADER, {"type": "string"}, "1 asks for Server-Timing in the answer"),
    ]
    if method != "GET":
        headers.append((TIMEOUT_HEADER, seconds, "Seconds until the request is given up"))
    operation.setdefault("parameters", []).extend(
        {"name": name, "in": "header", "schema": schema, "description": description}
        for name, schema, description in headers
    )
