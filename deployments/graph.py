"""The graph as one service: :class:`raylens.core.ports.VisionService` over Serve handles."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from ray.serve.schema import ReplicaState

from raylens.core.config import AppConfig
from raylens.core.errors import (
    DeadlineExceeded,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
)
from raylens.core.recipe import Recipe
from raylens.core.types import Delta, ModelInfo, PictureFile, ProcessedPicture, VisionRequest

INFO_TIMEOUT_S = 2.0
STATUS_TTL_S = 1.0
PREPROCESSOR = "Preprocessor"


class Graph:
    """Implements :class:`raylens.core.ports.VisionService` with the deployments' handles, for
    whoever composes them.

    Pictures go from the preprocessor to the model through the object store; they don't come back
    here. Both handles pass by reference: a preprocessor's response is given un-awaited to the
    model's call, where Serve resolves it, because it is a top-level argument.
    """

    def __init__(
        self,
        config: AppConfig,
        application: str,
        preprocessor: DeploymentHandle,
        models: dict[str, DeploymentHandle],
    ) -> None:
        self._config = config
        self._application = application
        self._preprocessor = preprocessor.options(_by_reference=True)
        self._models = {name: handle.options(_by_reference=True) for name, handle in models.items()}
        self._infos: dict[str, ModelInfo] = {}
        self._status: dict[str, bool] = {}
        self._status_at = -math.inf
        self._status_lock = asyncio.Lock()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[PictureFile]
    ) -> AsyncGenerator[Delta, None]:
        """Implements :meth:`raylens.core.ports.VisionService.generate`."""
        calls: list[DeploymentResponse[Any] | DeploymentResponseGenerator[Any]] = []
        try:
            for picture in pictures:
                calls.append(
                    self._preprocessor.process.remote(
                        picture, request.recipe, request.deadline, request.id
                    )
                )
            deltas = (
                self._models[request.model].options(stream=True).generate.remote(request, *calls)
            )
            calls.append(deltas)
            while True:
                async with asyncio.timeout(max(0.0, request.remaining)):
                    delta = await anext(deltas, None)
                if delta is None:
                    calls.clear()
                    return
                yield delta
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the deadline passed before the answer was complete", "deadline"
            ) from error
        except (RayError, RayServeException) as error:
            raise self._translate(error, request.model) from error
        finally:
            for call in calls:
                _cancel(call)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        """Implements :meth:`raylens.core.ports.VisionService.preprocess`."""
        call = self._preprocessor.preview.remote(picture, recipe, deadline, identity)
        unfinished = True
        try:
            async with asyncio.timeout(max(0.0, deadline - time.time())):
                shown: ProcessedPicture = await call
            unfinished = False
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the deadline passed before the picture was processed", "deadline"
            ) from error
        except (RayError, RayServeException) as error:
            raise self._translate(error, PREPROCESSOR) from error
        finally:
            if unfinished:
                _cancel(call)
        return shown

    async def model_info(self, name: str) -> ModelInfo:
        """Implements :meth:`raylens.core.ports.VisionService.model_info`.

        Whether a replica runs, Serve's controller tells: a call to a busy model would wait behind
        others. What the model is never changes, and is asked once.
        """
        if not (await self._running()).get(name):
            raise ModelNotLoaded(f"no replica of {name} runs", "model", retry_after=STATUS_TTL_S)
        if name not in self._infos:
            try:
                async with asyncio.timeout(INFO_TIMEOUT_S):
                    self._infos[name] = await self._models[name].info.remote()
            except (TimeoutError, RayError, RayServeException) as error:
                raise ModelNotLoaded(
                    f"no replica of {name} answers", "model", retry_after=STATUS_TTL_S
                ) from error
        return self._infos[name]

    async def _running(self) -> dict[str, bool]:
        """Which deployments have a running replica, as of a second ago at most."""
        async with self._status_lock:
            if time.monotonic() - self._status_at > STATUS_TTL_S:
                status = await asyncio.to_thread(serve.status)
                deployments = status.applications[self._application].deployments
                self._status = {
                    name: deployment.replica_states.get(ReplicaState.RUNNING, 0) > 0
                    for name, deployment in deployments.items()
                }
                self._status_at = time.monotonic()
            return self._status

    def _translate(self, error: Exception, model: str) -> RaylensError:
        """The project's own error for one of Ray's. Errors of ours that crossed a handle come out
        as they went in."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, RaylensError):
            return error.cause
        if isinstance(error, BackPressureError):
            return Overloaded(
                f"the queue of {model} is full", "model", retry_after=self._retry_after(model)
            )
        if isinstance(error, RayTaskError):
            return ModelFailed(f"{model} failed on this request: {type(error.cause).__name__}")
        return ModelNotLoaded(
            f"no replica of {model} answers", "model", retry_after=self._retry_after(model)
        )

    def _retry_after(self, name: str) -> float:
        return next(
            (model.retry_after_s for model in self._config.models if model.name == name),
            STATUS_TTL_S,
        )


def _cancel(call: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> None:
    """Cancelling a call that has failed raises its failure again."""
    with suppress(RayError, RayServeException):
        call.cancel()
