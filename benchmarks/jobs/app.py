"""The graph with a model that answers at once, and a route that does nothing: what is left is the
queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from deployments.app import job_queue
from deployments.ingress import Surface
from raylens.core.config import AppConfig
from raylens.core.types import Delta, FinishReason, ModelInfo, Query, Usage, VisionRequest

MODEL = "stub"
BLOCK = "wait"
"""The question that isn't answered."""


class StubModel:
    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        if isinstance(request.task, Query) and request.task.question == BLOCK:
            await asyncio.sleep(request.remaining)
        yield Delta("nothing", 0, FinishReason.STOP, Usage(1, 1))

    async def info(self) -> ModelInfo:
        return ModelInfo(MODEL, "none", "smolvlm", "cpu", ("query",))


class StubPreprocessor:
    async def process(self, *_: Any) -> None: ...


@serve.ingress()
class BenchIngress(Surface):
    """The real one, and ``POST /noop``, which reads its body as JSON and answers with a fixed
    object."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = super().__serve_build_asgi_app__()

        @app.post("/noop")
        async def noop(body: dict[str, Any]) -> dict[str, str]:
            return {"status": "queued"}

        return app


def build_app(args: dict[str, Any]) -> Application:
    """As :func:`deployments.app.build_app`, with stubs."""
    args = {"models": [{"name": MODEL, "family": "smolvlm"}], **args}
    config = AppConfig.model_validate(args)
    model = serve.deployment(StubModel).options(
        name=MODEL, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1}
    )
    preprocessor = serve.deployment(StubPreprocessor).options(
        name="Preprocessor", ray_actor_options={"num_cpus": 0.1}
    )
    ingress = serve.deployment(BenchIngress).options(
        name="Ingress",
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": 0.1},
        deployment_actors=[job_queue(config, args)],
    )
    return ingress.bind(config, preprocessor.bind(), {MODEL: model.bind()})
