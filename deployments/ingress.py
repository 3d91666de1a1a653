"""The HTTP deployment."""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.graph import Graph
from deployments.job_client import JobQueueClient
from deployments.picture_limits import picture_limits
from deployments.pipeline_defaults import PipelineDefaultsClient
from preprocessing.header import check_file
from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.logs import configure_logging


class HttpApplication:
    """The HTTP application over the graph and the job queue, not yet a Serve ingress."""

    def __init__(
        self, config: AppConfig, preprocessor: DeploymentHandle, models: dict[str, DeploymentHandle]
    ) -> None:
        configure_logging(config.log_level)
        self._config = config
        self._graph = Graph(config, serve.get_replica_context().app_name, preprocessor, models)
        self._jobs = JobQueueClient(config.jobs.queue_timeout_s) if config.jobs.enabled else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        limits = picture_limits(self._config.limits)

        def check_picture(data: bytes, field: str) -> None:
            check_file(data, limits, field)

        return create_app(
            self._graph,
            self._config,
            self._jobs,
            pipelines=PipelineDefaultsClient(),
            check_picture=check_picture,
            echo_request_id=False,
        )


@serve.ingress()
class Ingress(HttpApplication):
    """The HTTP application behind Serve's proxy."""
