"""``POST /v1/preprocess``: the picture that a model would see, and the way back to the original."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from raylens.api.context import Context
from raylens.api.picture_body import PictureBody, describe, read, required
from raylens.core.types import ProcessedPicture

JPEG = "image/jpeg"


class PreprocessRequest(PictureBody):
    """``model`` gives the recipe that ``recipe`` changes."""


def router(context: Context) -> APIRouter:
    """The dialect's route."""
    routes = APIRouter(tags=["Preprocessing"])

    @routes.post(
        "/v1/preprocess",
        summary="Show what a model would see",
        description="Answers JSON, or the picture alone where Accept is image/jpeg.",
        openapi_extra=describe(PreprocessRequest),
    )
    async def preprocess(http: Request) -> Response:
        body, picture = await read(http, PreprocessRequest, context)
        model = context.catalog.resolve(body.model, "openai")
        recipe, deadline = context.recipe(model, body.recipe), context.deadline(http, model)
        shown = await context.service.preprocess(
            required(picture), recipe, deadline, http.state.request_id
        )
        if _wants_jpeg(http):
            return Response(shown.jpeg, media_type=JPEG)
        # Megabytes of base64 take their time.
        return await asyncio.to_thread(lambda: JSONResponse({"model": model, **_encode(shown)}))

    return routes


def _wants_jpeg(http: Request) -> bool:
    accepted = http.headers.get("accept", "")
    return JPEG in accepted and "application/json" not in accepted


def _encode(picture: ProcessedPicture) -> dict[str, Any]:
    return {
        "image_url": f"data:{JPEG};base64,{base64.b64encode(picture.jpeg).decode()}",
        "geometry": {
            "original": picture.original,
            "processed": picture.processed,
            "to_original": picture.to_original,
        },
        "steps": [
            {"name": step.name, "did": step.did, "ms": round(1000 * step.seconds, 2)}
            for step in picture.steps
        ],
        "warnings": picture.warnings,
    }
