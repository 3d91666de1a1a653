"""Signalling of WebRTC sessions, whose video doesn't pass through HTTP.

Format: Scope's API (``daydreamlive/scope``).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.pipelines import PipelineDefaults, identify
from raylens.core.fairness import current_client
from raylens.core.keys import current_key
from raylens.core.wire import LenientBody
from raylens.realtime.ports import SessionClient, SessionOffer, WebRtcService

PREFIX = "/api/v1/webrtc"
MAX_SDP_CHARS = 256 * 1024
MAX_CANDIDATES = 256
DEFAULT_PIPELINE = "moondream"
PIPELINES = "pipeline_ids"
"""Scope's parameter that names the pipelines of a session."""


class OfferRequest(LenientBody):
    """Body of ``POST /api/v1/webrtc/offer``."""

    sdp: Annotated[str, Field(min_length=1, max_length=MAX_SDP_CHARS)]
    type: str = "offer"
    initialParameters: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Settings of the pipeline, over those with which it was loaded."""


class CandidatesRequest(LenientBody):
    """Body of ``PATCH /api/v1/webrtc/offer/{session_id}``."""

    candidates: Annotated[list[Any], Field(default_factory=list, max_length=MAX_CANDIDATES)]


def router(service: WebRtcService, defaults: PipelineDefaults) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix=PREFIX, tags=["Live video"])

    @routes.get(
        "/ice-servers",
        summary="List the ICE servers for a browser",
        **answers(shapes.IceServers),
    )
    async def ice_servers(http: Request) -> dict[str, Any]:
        return {"iceServers": await service.ice_servers(identify_client(http))}

    @routes.post("/offer", summary="Open a WebRTC session", **answers(shapes.SessionAnswer))
    async def offer(body: OfferRequest, http: Request) -> dict[str, str]:
        parameters = dict(body.initialParameters)
        loaded = await defaults.get(identify(http))
        pipeline_id = _chosen_pipeline(parameters)
        if loaded is not None and pipeline_id in (None, loaded.pipeline_id):
            pipeline_id = loaded.pipeline_id
            parameters = {**loaded.load_params, **parameters}
        session_offer = SessionOffer(
            body.sdp, body.type, pipeline_id or DEFAULT_PIPELINE, parameters
        )
        answer = await service.offer(session_offer, identify_client(http))
        return {"sdp": answer.sdp, "type": answer.type, "sessionId": answer.session_id}

    @routes.get(
        "/offer/{session_id}",
        summary="Get a session's state",
        **answers(shapes.SessionState),
    )
    async def state(session_id: str, http: Request) -> dict[str, Any]:
        return await service.state(session_id, identify_client(http))

    @routes.patch(
        "/offer/{session_id}",
        summary="Add ICE candidates to a session",
        status_code=204,
        **answers(),
    )
    async def add_candidates(session_id: str, body: CandidatesRequest, http: Request) -> Response:
        await service.add_candidates(session_id, body.candidates, identify_client(http))
        return Response(status_code=204)

    @routes.delete("/offer/{session_id}", summary="End a session", status_code=204, **answers())
    async def close(session_id: str, http: Request) -> Response:
        await service.close(session_id, identify_client(http))
        return Response(status_code=204)

    return routes


def identify_client(http: Request) -> SessionClient:
    """Return who sends a request."""
    key = current_key.get()
    address = http.client.host if http.client else ""
    return SessionClient(current_client.get(), None if key is None else key.name, address)


def _chosen_pipeline(parameters: dict[str, Any]) -> str | None:
    """Take the name of the pipeline out of a session's parameters."""
    chosen = parameters.pop(PIPELINES, None)
    single = parameters.pop("pipeline_id", None)
    name = chosen[0] if isinstance(chosen, list) and chosen else single
    return name if isinstance(name, str) else None
