"""``GET /api/v1/status``: models, replicas, and the figures of the last minutes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request

from raylens import __version__
from raylens.api.answers import answers
from raylens.api.answers import status as shapes
from raylens.api.context import Context
from raylens.core.config import ModelConfig
from raylens.core.errors import ModelNotLoaded
from raylens.core.keys import Scope, current_key
from raylens.core.types import ModelInfo
from raylens.status.ports import DeploymentState, StatusSource

PATH = "/api/v1/status"


def router(context: Context, source: StatusSource) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["System"])

    @routes.get(
        PATH,
        summary="Show models, replicas, and the figures of the last minutes",
        description="Of all clients together. What can't be told at the moment is null.",
        **answers(shapes.Status),
    )
    async def status(http: Request) -> dict[str, Any]:
        catalog = context.catalog
        infos, deployments, report, dashboard = await asyncio.gather(
            context.fetch_model_infos(catalog.models),
            source.deployments(),
            source.report(),
            source.ray_dashboard(),
        )
        states = deployments or {}
        return {
            "version": __version__,
            "timestamp": datetime.now(UTC).isoformat(),
            "models": {
                name: _model(model, infos[name], states.get(name))
                for name, model in catalog.models.items()
            },
            "deployments": deployments
            and {name: _deployment(state) for name, state in deployments.items()},
            "max_in_flight": context.config.limits.max_in_flight,
            "history": report and asdict(report),
            "links": {
                **context.config.links.model_dump(),
                "ray_dashboard": context.config.links.ray_dashboard
                or _local_address(http, dashboard),
            },
        }

    return routes


def _model(
    config: ModelConfig, info: ModelInfo | ModelNotLoaded, deployment: DeploymentState | None
) -> dict[str, Any]:
    known = info if isinstance(info, ModelInfo) else None
    return {
        "state": _state(info, deployment),
        "checkpoint": known.checkpoint if known else config.remote.model or config.checkpoint,
        "family": known.family if known else config.family,
        "device": known and known.device,
        "dtype": known and known.dtype,
        "parameters": known and known.parameters,
        "tasks": list(known.tasks) if known else [],
        "max_batch_size": config.max_batch_size,
        "max_waiting": config.max_waiting,
    }


def _state(info: ModelInfo | ModelNotLoaded, deployment: DeploymentState | None) -> str:
    if isinstance(info, ModelInfo):
        return "loaded"
    if deployment is not None and deployment.starting:
        return "loading"
    return "not loaded" if info.on_demand is None else "on demand"


def _deployment(state: DeploymentState) -> dict[str, Any]:
    key = current_key.get()
    may_read_message = key is None or Scope.ADMIN in key.scopes
    return asdict(state) | {"message": state.message if may_read_message else ""}


def _local_address(http: Request, dashboard: str | None) -> str | None:
    """Return the URL of Ray's dashboard if it is on the machine of whoever asks.

    It listens on a loopback address, unless it was told otherwise, and the addresses of a cluster's
    nodes may mean nothing to a browser.
    """
    url = f"http://{dashboard}"
    try:
        hosts = (http.client and http.client.host, http.url.hostname, urlsplit(url).hostname)
        return url if all(host and _is_loopback(host) for host in hosts) else None
    except ValueError:  # one is no address, or the request's host is malformed
        return None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ip_address(host).is_loopback
