"""The deployment of live video, as the HTTP application sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raylens.core.errors import Overloaded, RaylensError
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer, WebRtcService

CALL_S = 15.0
START_S = 60.0
"""For an offer: its replica may have to start."""
RETRY_AFTER_S = 5.0
ATTEMPTS = 3
"""An offer is made to other replicas, too, if one is full."""


class RealtimeClient(WebRtcService):
    """Calls the replica that a session's id names."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def ice_servers(self, client: SessionClient) -> list[dict[str, Any]]:
        return await self._call("", START_S, "ice_servers", client)

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        for attempt in range(ATTEMPTS):
            try:
                return await self._call("", START_S, "offer", offer, client)
            except Overloaded:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        await self._call(session_id, CALL_S, "add_candidates", session_id, candidates, client)

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        state: dict[str, Any] = await self._call(session_id, CALL_S, "state", session_id, client)
        return state

    async def close(self, session_id: str, client: SessionClient) -> None:
        await self._call(session_id, CALL_S, "close", session_id, client)

    async def _call(self, session_id: str, timeout_s: float, method: str, *arguments: Any) -> Any:
        handle = self._handle
        if session_id:
            handle = handle.options(session_id=session_id.partition("-")[0])
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(handle, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, RaylensError):
                raise error.cause from error
            raise
        except (TimeoutError, RayError, RayServeException) as error:
            raise Overloaded(
                "live video is not available at the moment", None, retry_after=RETRY_AFTER_S
            ) from error
