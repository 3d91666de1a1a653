"""The HTTP deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from deployments.draining import is_stopping, replica_draining, this_actor
from deployments.graph import Graph
from deployments.job_client import JobQueueClient
from deployments.job_handover import hand_over_jobs
from deployments.ledger import LedgerClient
from deployments.loopback import bind_to_loopback
from deployments.picture_limits import picture_limits
from deployments.pipeline_defaults import PipelineDefaultsClient
from deployments.request_metrics import PrometheusRequestMetrics
from preprocessing.formats import sniff_video
from preprocessing.header import check_file
from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import UnsupportedMedia
from raylens.core.fallback import FallbackService
from raylens.core.logs import configure_logging
from raylens.core.ports import VisionService
from raylens.core.types import MediaFile, PictureFile


class HttpApplication:
    """The HTTP application over the graph and the job queue, not yet a Serve ingress."""

    def __init__(
        self, config: AppConfig, preprocessor: DeploymentHandle, models: dict[str, DeploymentHandle]
    ) -> None:
        bind_to_loopback()
        config.check_reach(_listening_host())
        configure_logging(config.log_settings, "ingress")
        self._config = config
        graph = Graph(config, serve.get_replica_context().app_name, preprocessor, models)
        self._service = cast(VisionService, FallbackService(graph, config))
        self._jobs = JobQueueClient(config.jobs.queue_timeout_s) if config.jobs.enabled else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        limits = picture_limits(self._config.limits)

        def check_media(media: MediaFile) -> None:
            if isinstance(media, PictureFile):
                check_file(media.data, limits, media.field)
                return
            try:
                sniff_video(media.data)
            except UnsupportedMedia as error:
                raise error.about(media.field) from None

        return create_app(
            self._service,
            self._config,
            self._jobs,
            pipelines=PipelineDefaultsClient(),
            ledger=LedgerClient(),
            metrics=PrometheusRequestMetrics(),
            draining=Draining(replica_draining(this_actor(), is_stopping)),
            lifespan=self._lifespan,
            check_media=check_media,
            echo_request_id=False,
        )

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        if self._jobs is not None:
            await hand_over_jobs()


def _listening_host() -> str:
    """Return the address on which Serve's proxies listen."""
    return _get_global_client().http_config.host or ""


@serve.ingress()
class Ingress(HttpApplication):
    """The HTTP application behind Serve's proxy."""
