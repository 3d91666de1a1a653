"""The deployment of live video: WebRTC sessions, which are sized apart from HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import ENGINE_LOAD
from deployments.draining import is_stopping, machine_drain, replica_draining, this_actor
from deployments.graph import Graph
from deployments.ingress_ledger import IngressLedger
from deployments.live_deployment import LiveDeployment, Settings
from deployments.loopback import bind_to_loopback, listening_host
from deployments.request_metrics import PrometheusRequestMetrics
from deployments.session_metrics import SessionMetrics
from raylens.api.access_log import RecordedService
from raylens.api.client_limits import own_limits, session_place
from raylens.api.context import Context
from raylens.api.frame_questions import FrameQuestions
from raylens.api.media import Media
from raylens.api.shared import Shared
from raylens.api.source_watches import KEY_GONE, SourceWatches
from raylens.api.webrtc import PREFIX as WEBRTC
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import UnknownSession
from raylens.core.fallback import FallbackService
from raylens.core.key_source import KeySource
from raylens.core.leases import Leases
from raylens.core.live_settings import apply_settings, live_view
from raylens.core.logs import configure_logging
from raylens.core.ports import VisionService
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.overlay import Pixels
from raylens.realtime.plugins import load_registry
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer
from raylens.realtime.processors import open_processor
from raylens.realtime.sessions import find_pipeline
from raylens.realtime.watch import SessionFeed
from raylens.realtime.webrtc.addresses import find_addresses
from raylens.realtime.webrtc.sessions import Sessions

logger = logging.getLogger(__name__)

THREADS = 4
"""That track and draw. OpenCV and Pillow let others run meanwhile."""
STOPPING = "this part of the server is about to stop: open another session"


class Realtime(LiveDeployment):
    """Holds the peers of some sessions, and asks the models about their frames."""

    def __init__(
        self, config: AppConfig, preprocessor: DeploymentHandle, models: dict[str, DeploymentHandle]
    ) -> None:
        bind_to_loopback()
        configure_logging(config.log_settings, "realtime")
        self._config = self._current_config = config
        context = serve.get_replica_context()
        self._graph = Graph(config, context.app_name, preprocessor, models)
        replica_drains = replica_draining(this_actor(), is_stopping)
        self._draining = Draining(lambda: replica_drains() or machine_drain() is not None)
        self._shared = Shared(config, None, Leases(IngressLedger()), self._draining)
        self._shared.context = self._make_context(config)
        self._metrics = PrometheusRequestMetrics()
        self._keys = KeySource(live_view(lambda: self._current_config))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="frames")
        webrtc = config.realtime.webrtc
        addresses = find_addresses(webrtc.addresses, listening_host())
        self._sessions = Sessions(context.replica_tag, webrtc, addresses)
        self._watches = SourceWatches(
            self._shared,
            self._metrics,
            self._keys,
            self._threads,
            self._draining,
            self._room_for_watches,
        )
        self._feeds: dict[str, SessionFeed] = {}
        """Of open sessions, by their ids."""
        self._ending: set[asyncio.Future[None]] = set()
        self._leaving = asyncio.ensure_future(self._leave())
        counts = {
            "webrtc": lambda: len(self._sessions.states),
            "watch": lambda: len(self._watches),
        }
        self._counting = asyncio.ensure_future(SessionMetrics().run(counts))
        logger.info("WebRTC sessions listen on %s", ", ".join(addresses))

    async def configure(self, settings: Settings) -> None:
        config = apply_settings(self._config, settings)
        self._shared.configure(config)
        self._shared.context = self._make_context(config)
        self._graph.configure(config)
        self._current_config = config

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        """Open a session. Raises as :class:`raylens.realtime.ports.WebRtcService` does."""
        registry = await asyncio.to_thread(load_registry)
        pipeline = find_pipeline(registry, offer.pipeline_id, "pipeline_ids")
        questions = FrameQuestions(self._shared, self._metrics, self._keys, client, WEBRTC)
        questions.identify()
        place = AsyncExitStack()
        limits = own_limits(self._current_config.client_limits)
        max_frames = self._current_config.realtime.max_frames
        await place.enter_async_context(session_place(self._shared.leases, limits))
        place.callback(asyncio.ensure_future(questions.watch_key()).cancel)
        feed = SessionFeed()
        place.callback(self._end_feed, feed)

        def open_session(parameters: Mapping[str, Any], report: Report) -> FrameProcessor:
            processor = open_processor(
                pipeline,
                parameters,
                questions,
                feed.passing_on(report),
                self._threads,
                to_tensor,
                max_frames,
            )
            return Placed(processor, place)

        try:
            session_id, sdp = await self._sessions.open(
                offer.sdp, offer.type, offer.parameters, client.name, open_session
            )
        except BaseException:
            await place.aclose()
            raise
        questions.on_denied = partial(self._end, session_id, client)
        if not feed.has_ended:
            self._feeds[session_id] = feed
        return SessionAnswer(sdp, "answer", session_id)

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        await self._sessions.find(session_id, client.name).add_candidates(candidates)

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        state = self._sessions.state(session_id, client.name)
        return {
            "sessionId": state.id,
            "status": state.status.value,
            "reason": state.reason,
            "measured_fps": state.measured_fps,
            "frames": asdict(state.frames),
            "dropped_results": state.dropped_results,
        }

    async def close(self, session_id: str, client: SessionClient) -> None:
        await self._sessions.close(session_id, client.name, "the client has ended it")

    async def watch(
        self, source: str, pipeline: Mapping[str, Any], fps: float, client: SessionClient
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Watch a source as :meth:`raylens.jobs.types.watch.Watcher.watch` says."""
        async with aclosing(self._watches.watch(source, pipeline, fps, client)) as messages:
            async for message in messages:
                yield message

    async def follow(
        self, session_id: str, client: SessionClient
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what a session says until it ends, as ``Watcher.watch`` does."""
        self._sessions.find(session_id, client.name)
        feed = self._feeds.get(session_id)
        if feed is None:
            raise UnknownSession(f"session {session_id!r} is about to end", "source")
        async with aclosing(self._watches.follow(feed, client)) as messages:
            async for message in messages:
                yield message

    def _end_feed(self, feed: SessionFeed) -> None:
        feed.end()
        self._feeds = {name: each for name, each in self._feeds.items() if each is not feed}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: 1 means as many sessions as there may be."""
        limit = self._config.realtime.webrtc.max_sessions
        return {ENGINE_LOAD: (len(self._sessions.states) + len(self._watches)) / limit}

    def _room_for_watches(self) -> int:
        return self._config.realtime.webrtc.max_sessions - len(self._sessions.states)

    def _make_context(self, config: AppConfig) -> Context:
        service = RecordedService(cast(VisionService, FallbackService(self._graph, config)))
        media = Media(config.limits, self._shared.fetcher)
        return Context(
            cast(VisionService, service), config, Catalog(config), media, lambda media: None
        )

    def _end(self, session_id: str, client: SessionClient) -> None:
        """End a session whose key is no longer valid, unless it has ended."""

        async def close() -> None:
            with suppress(UnknownSession):
                await self._sessions.close(session_id, client.name, KEY_GONE)

        task = asyncio.ensure_future(close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _leave(self) -> None:
        await self._draining.wait()
        self._watches.stop()
        await self._sessions.close_all(STOPPING)


class Placed(FrameProcessor):
    """A processor that gives its session's place back at the end."""

    def __init__(self, processor: FrameProcessor, place: AsyncExitStack) -> None:
        self._processor = processor
        self._place = place

    async def process(self, frame: Frame) -> Pixels:
        return await self._processor.process(frame)

    def change(self, parameters: Mapping[str, Any]) -> None:
        self._processor.change(parameters)

    async def close(self) -> None:
        try:
            await self._processor.close()
        finally:
            await self._place.aclose()


def to_tensor(pixels: Pixels) -> Any:
    import torch  # only for plugins

    return torch.from_numpy(pixels)
