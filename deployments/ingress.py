"""The HTTP deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.answer_spans import ReadingMiddleware
from deployments.draining import is_stopping, replica_draining, this_actor
from deployments.graph import Graph
from deployments.job_client import JobQueueClient
from deployments.job_handover import hand_over_jobs
from deployments.ledger import LedgerClient
from deployments.live_deployment import LiveDeployment, Settings
from deployments.loopback import bind_to_loopback, listening_host
from deployments.picture_limits import picture_limits
from deployments.pipeline_defaults import PipelineDefaultsClient
from deployments.realtime_client import RealtimeClient
from deployments.request_metrics import PrometheusRequestMetrics
from deployments.session_metrics import SessionMetrics
from deployments.spans import is_on
from deployments.status_source import ServeStatusSource
from preprocessing.formats import sniff_video
from preprocessing.header import check_file
from raylens.api.app import create_app
from raylens.api.live_app import LiveApp
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import RaylensError, UnsupportedMedia
from raylens.core.fallback import FallbackService
from raylens.core.leases import Leases
from raylens.core.ledger import Grant
from raylens.core.live_settings import apply_settings
from raylens.core.logs import configure_logging
from raylens.core.ports import VisionService
from raylens.core.types import MediaFile, PictureFile

logger = logging.getLogger(__name__)


class HttpApplication(LiveDeployment):
    """The HTTP application over the graph and the job queue, not yet a Serve ingress."""

    def __init__(
        self,
        config: AppConfig,
        preprocessor: DeploymentHandle,
        models: dict[str, DeploymentHandle],
        realtime: DeploymentHandle | None = None,
    ) -> None:
        bind_to_loopback()
        config.check_reach(listening_host())
        configure_logging(config.log_settings, "ingress")
        self._config = self._current_config = config
        application = serve.get_replica_context().app_name
        self._graph = Graph(config, application, preprocessor, models)
        self._status = ServeStatusSource(application, list(models))
        self._jobs = JobQueueClient(config.jobs.queue_timeout_s) if config.jobs.enabled else None
        draining = Draining(replica_draining(this_actor(), is_stopping))
        self._ledger = LedgerClient()
        self._shared = Shared(config, self._jobs, Leases(self._ledger), draining)
        sessions = self._shared.sessions
        counting = SessionMetrics().run({"websocket": lambda: sessions.in_flight})
        self._counting = asyncio.ensure_future(counting)
        self._webrtc = None
        if realtime is not None:
            self._webrtc = RealtimeClient(realtime, config.realtime.webrtc)

    def __serve_build_asgi_app__(self) -> LiveApp:
        self._app = LiveApp(self._build(self._config))
        return self._app

    async def configure(self, settings: Settings) -> None:
        config = apply_settings(self._config, settings)
        config.check_reach(listening_host())
        self._shared.configure(config)
        try:
            app = await asyncio.to_thread(self._build, config)
        except ValueError:
            self._shared.configure(self._current_config)
            raise
        if self._jobs is not None:
            # First, so that it knows a new recipe before a job names it.
            try:
                await self._jobs.take_settings(settings)
            except RaylensError as error:
                logger.warning("the job queue doesn't know the changed settings: %s", error)
        self._graph.configure(config)
        self._app.current = app
        self._shared.publish(app)
        self._current_config = config

    async def live_settings(self) -> Settings:
        """Return the settings in force, for a job queue that starts."""
        return self._settings

    async def ledger(self, method: str, *arguments: Any) -> Grant:
        """Call the ledger of limits for another deployment."""
        return await self._ledger.call(method, *arguments)

    def _build(self, config: AppConfig) -> FastAPI:
        limits = picture_limits(config.limits)

        def check_media(media: MediaFile) -> None:
            if isinstance(media, PictureFile):
                check_file(media.data, limits, media.field)
                return
            try:
                sniff_video(media.data)
            except UnsupportedMedia as error:
                raise error.about(media.field) from None

        app = create_app(
            cast(VisionService, FallbackService(self._graph, config)),
            config,
            self._jobs,
            pipelines=PipelineDefaultsClient(),
            webrtc=self._webrtc,
            status=self._status,
            shared=self._shared,
            metrics=PrometheusRequestMetrics(),
            lifespan=self._lifespan,
            check_media=check_media,
            echo_request_id=False,
        )
        if is_on():
            app.add_middleware(ReadingMiddleware)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        if self._jobs is not None:
            await hand_over_jobs()


@serve.ingress()
class Ingress(HttpApplication):
    """The HTTP application behind Serve's proxy."""
