"""``POST /v1/preprocess``: the picture as a model sees it, and its geometry in the original."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from raylens.api.answers import answers
from raylens.api.answers import pictures as shapes
from raylens.api.context import Context
from raylens.api.picture_body import ImageUrlBody, describe_body, read_body, require_picture
from raylens.core.errors import ModelNotLoaded
from raylens.core.fairness import current_client
from raylens.core.types import Caller, ProcessedPicture

JPEG = "image/jpeg"


class PreprocessRequest(ImageUrlBody):
    """Body of ``POST /v1/preprocess``. ``recipe`` changes the recipe of ``model``."""


def router(context: Context) -> APIRouter:
    """Return the dialect's route."""
    routes = APIRouter(tags=["Preprocessing"])

    @routes.post(
        "/v1/preprocess",
        summary="Show a picture as a model sees it",
        description="Answers with JSON, or with the JPEG file alone if Accept is image/jpeg.",
        openapi_extra=describe_body(PreprocessRequest),
        **answers(shapes.Preview, JPEG),
    )
    async def preprocess(http: Request) -> Response:
        body, upload = await read_body(http, PreprocessRequest, context)
        model = context.catalog.resolve(body.model, "openai")
        recipe = context.resolve_recipe(model, body.recipe)
        deadline = context.compute_deadline(http, model)
        caller = Caller(http.state.request_id, deadline, current_client.get())
        file = require_picture(http, body, upload)
        picture = await context.service.preprocess(file, recipe, caller)
        if _accepts_only_jpeg(http):
            return Response(picture.jpeg, media_type=JPEG)
        try:
            seen = await context.service.input_size(model, picture.processed)
        except ModelNotLoaded:  # the picture can be shown all the same
            seen = None
        # Encoding megabytes as base64 would block the event loop.
        return await asyncio.to_thread(
            lambda: JSONResponse({"model": model, **_as_json(picture, seen)})
        )

    return routes


def _accepts_only_jpeg(http: Request) -> bool:
    accept = http.headers.get("accept", "")
    return JPEG in accept and "application/json" not in accept


def _as_json(picture: ProcessedPicture, seen: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "image_url": f"data:{JPEG};base64,{base64.b64encode(picture.jpeg).decode()}",
        "geometry": {
            "stored": picture.stored,
            "original": picture.original,
            "processed": picture.processed,
            "model": seen,
            "to_original": picture.to_original,
        },
        "steps": [
            {"name": step.name, "did": step.did, "ms": round(1000 * step.seconds, 2)}
            for step in picture.steps
        ],
        "warnings": picture.warnings,
    }
