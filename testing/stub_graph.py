"""The graph with stubs, and a no-op route.

The model answers at once, and the preprocessor does nothing. The job queue and HTTP are real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX

from deployments.app import job_queue_actor_config
from deployments.ingress import HttpApplication
from deployments.job_client import QUEUE_ACTOR_NAME
from deployments.ledger import ledger_actor_config
from deployments.preprocessor import Preprocessor
from raylens.core.config import AppConfig
from raylens.core.types import Delta, FinishReason, ModelInfo, Query, Usage, VisionRequest

MODEL = "stub"
BLOCKING_QUESTION = "wait"
"""The question that the model doesn't answer before the deadline."""


class StubModel:
    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        if isinstance(request.task, Query) and request.task.question == BLOCKING_QUESTION:
            await asyncio.sleep(request.remaining)
        yield Delta("nothing", 0, FinishReason.STOP, Usage(1, 1))

    async def info(self) -> ModelInfo:
        return ModelInfo(MODEL, "none", "smolvlm", "cpu", ("query",))


class StubPreprocessor:
    async def process(self, *_: Any) -> None: ...


class StubRealtime:
    """Holds no sessions."""


@serve.ingress()
class StubIngress(HttpApplication):
    """The real HTTP application, and ``POST /noop``, which parses its body and does nothing."""

    def _build(self, config: AppConfig) -> FastAPI:
        app = super()._build(config)

        @app.post("/noop")
        async def noop(body: dict[str, Any]) -> dict[str, str]:
            return {"status": "queued"}

        return app


def build_stub_graph(
    args: dict[str, Any],
    model: type[StubModel] = StubModel,
    *model_args: Any,
    real_preprocessor: bool = False,
) -> Application:
    """Build the graph like :func:`deployments.app.build_app`, with stubs.

    ``model`` replaces the stub model, and is constructed with ``model_args``. With
    ``real_preprocessor``, pictures are processed.
    """
    models = [{"name": MODEL, "family": "smolvlm", "max_batch_size": 256}]
    args = {"models": models, **args}
    config = AppConfig.model_validate(args)
    resources = {"num_cpus": 0.1}
    stub = serve.deployment(model).options(
        name=MODEL, max_ongoing_requests=256, ray_actor_options=resources
    )
    stub_preprocessor = serve.deployment(StubPreprocessor).options(
        name="Preprocessor", ray_actor_options=resources
    )
    preprocessor = stub_preprocessor.bind()
    if real_preprocessor:
        real = serve.deployment(Preprocessor).options(
            name="Preprocessor", max_ongoing_requests=256, ray_actor_options=resources
        )
        preprocessor = real.bind(config)
    actors = [ledger_actor_config()]
    if config.jobs.enabled:
        actors.append(job_queue_actor_config(config, args))
    ingress = serve.deployment(StubIngress).options(
        name="Ingress",
        max_ongoing_requests=512,
        ray_actor_options=resources,
        deployment_actors=actors,
    )
    realtime = serve.deployment(StubRealtime).options(
        name="Realtime", ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(config, preprocessor, {MODEL: stub.bind(*model_args)}, realtime.bind())


def is_queue_actor(name: str) -> bool:
    """Whether a named actor of Ray's runs a job queue."""
    return name.startswith(SERVE_DEPLOYMENT_ACTOR_PREFIX) and name.endswith(QUEUE_ACTOR_NAME)
