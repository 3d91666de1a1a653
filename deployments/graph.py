"""The graph as one service: :class:`raylens.core.ports.VisionService` over Serve handles."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
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
    picture_field,
)
from raylens.core.fairness import FairPlaces
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    MediaFile,
    MemoryUsage,
    ModelInfo,
    PictureFile,
    ProcessedPicture,
    VisionRequest,
)

logger = logging.getLogger(__name__)

INFO_TIMEOUT_S = 2.0
CLEAR_TIMEOUT_S = 20.0
STATUS_TTL_S = 1.0
PREPROCESSOR = "Preprocessor"


class Graph(VisionService):
    """The deployments behind their Serve handles, composed into one service.

    Pictures go from the preprocessor to the model through the object store, without passing through
    this process. To that end, both handles pass by reference: the preprocessor's response becomes
    an argument of the model's call without being awaited. Serve resolves it at the model, because
    it is a top-level argument.
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
        self._streams = {name: handle.options(stream=True) for name, handle in self._models.items()}
        self._infos: dict[str, ModelInfo] = {}
        self._places = {
            model.name: FairPlaces("answers are in flight", model.capacity, "model")
            for model in config.models
        }
        self._replicas: dict[str, int] = {}
        self._status_at = -math.inf
        self._status_lock = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        # A model that has no room refuses the request here, before its pictures are processed.
        model = request.model
        replicas = (await self._recent_replicas()).get(model, 0)
        places = self._places[model]
        asked = min(request.sampling.n, places.limit)  # more than that is refused by the engine
        place = places.take(request.client, asked, max(1, replicas), self._retry_after(model))
        with place:
            async with aclosing(self._generate(request, pictures)) as deltas:
                async for delta in deltas:
                    yield delta

    async def _generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        unfinished: list[DeploymentResponse[Any] | DeploymentResponseGenerator[Any]] = []
        try:
            for picture in pictures:
                unfinished.append(
                    self._preprocessor.process.remote(picture, request.recipe, request.caller)
                )
            deltas = self._streams[request.model].generate.remote(request, *unfinished)
            unfinished.append(deltas)
            while True:
                async with asyncio.timeout(max(0.0, request.remaining)):
                    delta = await anext(deltas, None)
                if delta is None:
                    unfinished.clear()
                    return
                yield delta
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the deadline passed before the answer was complete", "deadline"
            ) from error
        except (RayError, RayServeException) as error:
            translated = self._translate(error, request.model)
            for index, picture in enumerate(pictures):
                if translated.field == picture_field(index):
                    translated = translated.about(picture.field)
            raise translated from error
        finally:
            for call in unfinished:
                _cancel(call)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        call = self._preprocessor.preview.remote(picture, recipe, caller)
        is_unfinished = True
        try:
            async with asyncio.timeout(max(0.0, caller.deadline - time.time())):
                processed: ProcessedPicture = await call
            is_unfinished = False
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the deadline passed before the picture was processed", "deadline"
            ) from error
        except (RayError, RayServeException) as error:
            raise self._translate(error, PREPROCESSOR) from error
        finally:
            if is_unfinished:
                _cancel(call)
        return processed

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        await self.model_info(model)
        try:
            async with asyncio.timeout(INFO_TIMEOUT_S):
                resized: tuple[int, int] = await self._models[model].input_size.remote(size)
        except (TimeoutError, RayError, RayServeException) as error:
            raise self._silent(model) from error
        return resized

    async def memory_usage(self) -> list[MemoryUsage]:
        return await self._broadcast("memory_usage", INFO_TIMEOUT_S)

    async def clear_memory(self) -> list[MemoryUsage]:
        return await self._broadcast("clear_memory", CLEAR_TIMEOUT_S)

    async def _broadcast(self, method: str, timeout_s: float) -> list[MemoryUsage]:
        """Call a method of every replica of every model. Those that don't answer are left out."""
        running = await self._running_replicas()
        answers = await asyncio.gather(
            *(
                handle.broadcast(method).results_async(timeout_s=timeout_s, return_exceptions=True)
                for name, handle in self._models.items()
                if running.get(name)
            ),
            return_exceptions=True,
        )
        replicas = [replica for answer in answers if isinstance(answer, list) for replica in answer]
        return [usage for usage in replicas if isinstance(usage, MemoryUsage)]

    async def model_info(self, name: str) -> ModelInfo:
        # Serve's controller reports the running replicas: a call to a busy model would wait in its
        # queue. The info itself never changes, so one call per model is enough.
        if not (await self._running_replicas()).get(name):
            raise ModelNotLoaded(
                f"no replica of {name} is running", "model", retry_after=STATUS_TTL_S
            )
        if name not in self._infos:
            try:
                async with asyncio.timeout(INFO_TIMEOUT_S):
                    self._infos[name] = await self._models[name].info.remote()
            except (TimeoutError, RayError, RayServeException) as error:
                raise self._silent(name) from error
        return self._infos[name]

    def _silent(self, name: str) -> ModelNotLoaded:
        return ModelNotLoaded(
            f"no replica of {name} answers", "model", retry_after=self._retry_after(name)
        )

    async def _recent_replicas(self) -> dict[str, int]:
        """Return what is known of the running replicas, and renew it in the background if it is
        old: a request doesn't wait for that."""
        if self._status_at == -math.inf:
            return await self._running_replicas()
        if time.monotonic() - self._status_at > STATUS_TTL_S and not self._status_lock.locked():
            self._renewal = asyncio.create_task(self._renew())
        return self._replicas

    async def _renew(self) -> None:
        try:
            await self._running_replicas()
        except Exception as error:  # the next request tries again
            logger.warning("the state of the deployments can't be read: %s", error)

    async def _running_replicas(self) -> dict[str, int]:
        """Return the number of running replicas of each deployment.

        The status is cached for ``STATUS_TTL_S`` seconds.
        """
        async with self._status_lock:
            if time.monotonic() - self._status_at > STATUS_TTL_S:
                status = await asyncio.to_thread(serve.status)
                deployments = status.applications[self._application].deployments
                self._replicas = {
                    name: deployment.replica_states.get(ReplicaState.RUNNING, 0)
                    for name, deployment in deployments.items()
                }
                self._status_at = time.monotonic()
            return self._replicas

    def _translate(self, error: Exception, deployment: str) -> RaylensError:
        """Return the project's error for an error of Ray's.

        A ``RaylensError`` that crossed a handle is returned unchanged.
        """
        if isinstance(error, RayTaskError) and isinstance(error.cause, RaylensError):
            return error.cause
        if isinstance(error, BackPressureError):
            return Overloaded(
                f"the queue of {deployment} is full",
                "model",
                retry_after=self._retry_after(deployment),
            )
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            return ModelFailed(f"{deployment} failed on this request: {type(error.cause).__name__}")
        return self._silent(deployment)

    def _retry_after(self, name: str) -> float:
        for model in self._config.models:
            if model.name == name:
                return model.retry_after_s
        return STATUS_TTL_S


def _cancel(call: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> None:
    # Cancelling a failed call raises its failure again.
    with suppress(RayError, RayServeException):
        call.cancel()
