"""The deployment of live video, as the HTTP application sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raylens.core.errors import Overloaded, RaylensError, UnknownSession
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer, WebRtcService

CALL_S = 5.0
START_S = 60.0
"""For an offer: its replica may have to start."""
RETRY_AFTER_S = 5.0
ATTEMPTS = 3
"""An offer is made to other replicas, too, if one is full."""


class RealtimeClient(WebRtcService):
    """Calls the replica that a session's id names."""

    def __init__(self, handle: DeploymentHandle, config: WebRtcConfig) -> None:
        self._handle = handle
        self._config = config

    async def ice_servers(self, client: SessionClient) -> list[dict[str, Any]]:
        from raylens.realtime.webrtc.ice_servers import ice_servers_json  # imports aiortc

        return ice_servers_json(self._config, client.name, time.time())

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        full: Overloaded | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                for _ in range(ATTEMPTS):
                    try:
                        answer: SessionAnswer = await self._call("", "offer", offer, client)
                        return answer
                    except Overloaded as error:
                        full = error
        raise full or _away()

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        await self._call_session(session_id, "add_candidates", candidates, client)

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        state: dict[str, Any] = await self._call_session(session_id, "state", client)
        return state

    async def close(self, session_id: str, client: SessionClient) -> None:
        await self._call_session(session_id, "close", client)

    async def _call_session(self, session_id: str, method: str, *arguments: Any) -> Any:
        """Call the replica of a session. If it doesn't answer, nobody else has the session."""
        replica = replica_of(session_id)
        try:
            async with asyncio.timeout(CALL_S):
                return await self._call(replica, method, session_id, *arguments)
        except TimeoutError:
            raise UnknownSession(
                f"the part of the server with session {session_id[:100]!r} doesn't answer: open"
                " another session"
            ) from None

    async def _call(self, replica: str, method: str, *arguments: Any) -> Any:
        handle = self._handle.options(session_id=replica) if replica else self._handle
        try:
            return await getattr(handle, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, RaylensError):
                raise error.cause from error
            raise
        except (RayError, RayServeException) as error:
            raise _away() from error


def replica_of(session_id: str) -> str:
    """Return the id of the replica that holds a session."""
    return session_id.partition("-")[0]


def _away() -> Overloaded:
    message = "live video is not available at the moment"
    return Overloaded(message, None, retry_after=RETRY_AFTER_S)
