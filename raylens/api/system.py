"""Health routes: liveness, readiness, and the state of each model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.context import Context
from raylens.core.errors import ModelNotLoaded
from raylens.core.types import ModelInfo


def router(context: Context) -> APIRouter:
    """Return the health routes."""
    routes = APIRouter(tags=["System"])

    @routes.head("/live", include_in_schema=False)
    @routes.get("/live", summary="Check that the process answers", **answers(shapes.Alive))
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @routes.head("/ready", include_in_schema=False)
    @routes.get(
        "/ready",
        summary="Check that every model answers or is loaded on demand: 200, else 503",
        response_model=None,
        responses={200: {"model": shapes.Ready}, 503: {"model": shapes.NotReady | shapes.Drains}},
    )
    async def ready() -> JSONResponse:
        infos = await context.fetch_model_infos(context.catalog.models)
        errors = {name: info for name, info in infos.items() if isinstance(info, ModelNotLoaded)}
        missing = [name for name, error in errors.items() if error.on_demand is None]
        on_demand = {name: error.on_demand for name, error in errors.items() if error.on_demand}
        body: dict[str, Any] = {"status": "ready"}
        if missing:
            body = {"status": "not ready", "waiting_for": missing}
        if on_demand:
            body["on_demand"] = on_demand
        return JSONResponse(body, 503, {"Retry-After": "5"}) if missing else JSONResponse(body)

    @routes.head("/health", include_in_schema=False)
    @routes.get(
        "/health",
        summary="Show the state of the server and of each model",
        **answers(shapes.Health),
    )
    async def health() -> dict[str, Any]:
        infos = await context.fetch_model_infos(context.catalog.models)
        active = context.catalog.resolve(None, "openai")
        info = infos[active]
        return {
            "status": "healthy" if all(map(_is_healthy, infos.values())) else "degraded",
            "model_loaded": isinstance(info, ModelInfo),
            "device": info.device if isinstance(info, ModelInfo) else None,
            "active_model": active,
            "timestamp": datetime.now(UTC).isoformat(),
            "models": {name: _as_json(info) for name, info in infos.items()},
        }

    return routes


def _is_healthy(info: ModelInfo | ModelNotLoaded) -> bool:
    return isinstance(info, ModelInfo) or info.on_demand is not None


def _as_json(info: ModelInfo | ModelNotLoaded) -> dict[str, Any]:
    if isinstance(info, ModelNotLoaded):
        return {"loaded": False}
    return {
        "loaded": True,
        "checkpoint": info.checkpoint,
        "family": info.family,
        "device": info.device,
        "tasks": list(info.tasks),
        "max_pictures": info.max_pictures,
        "frames_as_pictures": info.frames_as_pictures,
    }
