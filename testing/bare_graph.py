"""Three bare Serve deployments that answer a question about a picture: a baseline for raylens.

Annotations are not postponed here: FastAPI reads those of the ingress before Serve binds it.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

import cv2
from fastapi import FastAPI, Request
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.picture_limits import picture_limits
from preprocessing.pipeline import ProcessedImage, run
from raylens.core.config import RequestLimits
from raylens.core.recipe import DEFAULT
from testing.stub_graph import MODEL

PATH = "/v1/query"


class BareModel:
    async def generate(self, question: str, picture: Any) -> AsyncGenerator[str, None]:
        yield "nothing"


class BarePreprocessor:
    """Decodes as raylens does, in a thread, or does nothing."""

    def __init__(self, is_preprocessed: bool) -> None:
        self._is_preprocessed = is_preprocessed
        cv2.setNumThreads(1)  # as raylens, which uses the cores for several pictures

    async def process(self, data: bytes) -> ProcessedImage | None:
        if not self._is_preprocessed:
            return None
        return await asyncio.to_thread(run, data, DEFAULT, picture_limits(RequestLimits()))


bare_app = FastAPI()


@serve.ingress(bare_app)
class BareIngress:
    def __init__(self, preprocessor: DeploymentHandle, model: DeploymentHandle) -> None:
        self._preprocessor = preprocessor.options(_by_reference=True)
        self._model = model.options(_by_reference=True, stream=True)

    @bare_app.post(PATH)
    async def query(self, http: Request) -> dict[str, str]:
        body = await http.json()
        picture = base64.b64decode(body["image_url"].partition(",")[2])
        processed = self._preprocessor.process.remote(picture)
        deltas = self._model.generate.remote(body["question"], processed)
        return {"answer": "".join([delta async for delta in deltas])}


def bare_graph(is_preprocessed: bool) -> Application:
    few = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 256}
    preprocessor = serve.deployment(BarePreprocessor).options(**few)
    model = serve.deployment(BareModel).options(name=MODEL, **few)
    ingress = serve.deployment(BareIngress).options(**few)
    return ingress.bind(preprocessor.bind(is_preprocessed), model.bind())
