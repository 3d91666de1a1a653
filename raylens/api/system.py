"""Health: whether the server lives, whether its models answer, and what they run on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from raylens.api.context import Context
from raylens.core.types import ModelInfo


def router(context: Context) -> APIRouter:
    """The system's routes."""
    routes = APIRouter(tags=["System"])

    @routes.head("/live", include_in_schema=False)
    @routes.get("/live", summary="Whether this process answers")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @routes.head("/ready", include_in_schema=False)
    @routes.get("/ready", summary="200 once every model answers, else 503")
    async def ready() -> JSONResponse:
        infos = await _infos(context)
        missing = [name for name, info in infos.items() if info is None]
        if missing:
            body = {"status": "not ready", "waiting_for": missing}
            return JSONResponse(body, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"})

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", summary="The state of the server and of each model")
    async def health() -> dict[str, Any]:
        infos = await _infos(context)
        active = context.catalog.resolve(None, "openai")
        info = infos[active]
        return {
            "status": "healthy" if all(infos.values()) else "degraded",
            "model_loaded": info is not None,
            "device": info.device if info else None,
            "active_model": active,
            "timestamp": datetime.now(UTC).isoformat(),
            "models": {name: _describe(info) for name, info in infos.items()},
        }

    return routes


async def _infos(context: Context) -> dict[str, ModelInfo | None]:
    infos = await context.model_infos(context.catalog.models)
    return {name: info if isinstance(info, ModelInfo) else None for name, info in infos.items()}


def _describe(info: ModelInfo | None) -> dict[str, Any]:
    if info is None:
        return {"loaded": False}
    return {
        "loaded": True,
        "checkpoint": info.checkpoint,
        "family": info.family,
        "device": info.device,
        "tasks": list(info.tasks),
    }
