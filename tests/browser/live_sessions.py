"""WebRTC sessions in the process of the page's server, over a model that answers as tests say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from raylens.api.access_log import RequestMetrics
from raylens.api.frame_questions import FrameQuestions
from raylens.api.shared import Shared
from raylens.api.webrtc import PREFIX
from raylens.core.key_source import KeySource
from raylens.realtime.frames import FrameProcessor, Report
from raylens.realtime.plugins import load_registry
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer, WebRtcService
from raylens.realtime.processors import open_processor
from raylens.realtime.sessions import find_pipeline
from raylens.realtime.webrtc.sessions import Sessions

LOOPBACK = ("127.0.0.1",)


class LocalSessions(WebRtcService):
    """What the deployment ``Realtime`` does, without Ray."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._sessions = self._open()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="frames")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def count(self) -> int:
        return len(self._sessions.states)

    async def ice_servers(self, client: SessionClient) -> list[dict[str, Any]]:
        return []

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        self._loop = asyncio.get_running_loop()
        registry = await asyncio.to_thread(load_registry)
        pipeline = find_pipeline(registry, offer.pipeline_id, "pipeline_ids")
        keys = KeySource(self._shared.config)
        ask = FrameQuestions(self._shared, RequestMetrics(), keys, client, PREFIX)

        def open_session(parameters: Mapping[str, Any], report: Report) -> FrameProcessor:
            return open_processor(
                pipeline, parameters, ask, report, self._threads, torch.from_numpy
            )

        session_id, sdp = await self._sessions.open(
            offer.sdp, offer.type, offer.parameters, client.name, open_session
        )
        return SessionAnswer(sdp, "answer", session_id)

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        await self._sessions.find(session_id, client.name).add_candidates(candidates)

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        return asdict(self._sessions.state(session_id, client.name))

    async def close(self, session_id: str, client: SessionClient) -> None:
        await self._sessions.close(session_id, client.name, "the client has ended it")

    def stop(self, reason: str) -> None:
        """End every session, as a replica that stops does; the next ones belong to another one.

        It is called in another thread.
        """
        assert self._loop is not None
        stopping, self._sessions = self._sessions, self._open()
        asyncio.run_coroutine_threadsafe(stopping.close_all(reason), self._loop).result(10)

    def _open(self) -> Sessions:
        return Sessions("local", self._shared.config.realtime.webrtc, LOOPBACK)
