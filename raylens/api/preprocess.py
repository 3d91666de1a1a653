"""``POST /v1/preprocess``: the picture that a model would see, and the way back to the original."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from raylens.api.context import Context
from raylens.api.picture_body import PictureBody, describe, read, required
from raylens.types import ProcessedPicture

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
        body, image = await read(http, PreprocessRequest, context)
        model = context.catalog.resolve(body.model, "openai")
        recipe = context.recipe(model, body.recipe)
        picture = await context.service.preprocess(
            required(image), recipe, context.deadline(http, model), http.state.request_id
        )
        if http.headers.get("accept", "").startswith(JPEG):
            return Response(picture.jpeg, media_type=JPEG)
        return JSONResponse({"model": model, **_encode(picture)})

    return routes


def _encode(picture: ProcessedPicture) -> dict[str, Any]:
    return {
        "image_url": f"data:{JPEG};base64,{base64.b64encode(picture.jpeg).decode()}",
        "geometry": {
            "original": picture.original,
            "processed": picture.processed,
            "to_original": picture.to_original,
        },
        "steps": [{"name": step.name, "did": step.did, "ms": round(1000 * step.seconds, 2)} for step in picture.steps],
        "warnings": picture.warnings,
    }
