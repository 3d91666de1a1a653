"""The graph as one service: :class:`raylens.core.ports.VisionService` over Serve handles."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from deployments.answer_spans import AnswerSpan, answer_span
from deployments.deployment_states import STATUS_TTL_S, DeploymentStates
from deployments.picture_router import preprocessor_session_id
from deployments.retries import PAUSE_S, Loss, retried, retried_call
from deployments.spans import call as call_handle
from raylens.core.affinity import picture_key
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
PREPROCESSOR = "Preprocessor"


class Graph(VisionService):
    """The deployments behind their Serve handles, composed into one service.

    Pictures go from the preprocessor to the model through the object store, without passing through
    this process. To that end, both handles pass by reference: the preprocessor's response becomes
    an argument of the model's call without being awaited. Serve resolves it at the model, because
    it is a top-level argument.

    :class:`deployments.picture_router.PictureRouter` chooses a model's replica by the first
    picture.
    """

    def __init__(
        self,
        config: AppConfig,
        application: str,
        preprocessor: DeploymentHandle,
        models: dict[str, DeploymentHandle],
        states: DeploymentStates | None = None,
    ) -> None:
        self._config = config
        self._states = states or DeploymentStates(application)
        self._preprocessor = preprocessor.options(_by_reference=True)
        self._models = {name: handle.options(_by_reference=True) for name, handle in models.items()}
        self._streams = {name: handle.options(stream=True) for name, handle in self._models.items()}
        self._infos: dict[str, ModelInfo] = {}
        self._places = {
            model.name: FairPlaces("answers are in flight", model.capacity, "model")
            for model in config.models
        }

    def configure(self, config: AppConfig) -> None:
        """Take other limits of the models. They must be the same models."""
        self._config = config
        for model in config.models:
            self._places[model.name].limit = model.capacity

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        # A model that has no room refuses the request here, before its pictures are processed.
        model = request.model
        with answer_span(request, len(pictures)) as span:
            replicas = (await self._states.recent(model)).running
            places = self._places[model]
            asked = min(request.sampling.n, places.limit)  # the engine refuses more than that
            place = places.take(request.client, asked, max(1, replicas), self._retry_after(model))
            with place:
                attempts = retried(
                    lambda: self._generate(request, pictures, span),
                    lambda loss: self._may_repeat(request, loss),
                    request.stream,
                )
                async with aclosing(attempts) as deltas:
                    async for delta in deltas:
                        span.note(delta)
                        yield delta

    async def _may_repeat(self, request: VisionRequest, loss: Loss) -> bool:
        """Without another replica, a request would wait until one is loaded. It is refused instead,
        and another model may answer it."""
        if request.remaining <= PAUSE_S:
            return False
        state = await self._states.recent(request.model)
        return loss is Loss.ARGUMENT or state.running > 1

    async def _generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile], span: AnswerSpan
    ) -> AsyncGenerator[Delta, None]:
        unfinished: list[DeploymentResponse[Any] | DeploymentResponseGenerator[Any]] = []
        try:
            # Both handles learn which picture chooses the replica.
            preprocessor, handle = self._preprocessor, self._streams[request.model]
            if pictures:
                key = picture_key(pictures[0].data)
                session_id = preprocessor_session_id(request.model, key)
                preprocessor = preprocessor.options(session_id=session_id)
                handle = handle.options(session_id=key)
            for picture in pictures:
                process = preprocessor.process
                unfinished.append(span.call(process, picture, request.recipe, request.caller))
            deltas = span.call(handle.generate, request, *unfinished)
            unfinished.append(deltas)
            while True:
                async with asyncio.timeout(max(0.0, request.remaining)):
                    delta = await anext(deltas, None)
                if delta is None:
                    unfinished.clear()
                    return
                yield delta
        except TimeoutError as error:
            raise await self._too_late(request.model) from error
        except (RayError, RayServeException) as error:
            translated = self._translate(error, request.model)
            for index, picture in enumerate(pictures):
                if translated.field == picture_field(index):
                    translated = translated.about(picture.field)
            raise translated from error
        finally:
            for call in unfinished:
                _cancel(call)

    async def _too_late(self, model: str) -> DeadlineExceeded:
        state = await self._states.current(model)
        message = "the deadline passed before the answer was complete"
        if state.on_demand is not None:
            message = f"the deadline passed before {model} was loaded ({state.on_demand})"
        return DeadlineExceeded(message, "deadline")

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        return await retried_call(lambda: self._preview(picture, recipe, caller))

    async def _preview(
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
        running = [
            handle
            for name, handle in self._models.items()
            if (await self._states.current(name)).running
        ]
        answers = await asyncio.gather(
            *(
                handle.broadcast(method).results_async(timeout_s=timeout_s, return_exceptions=True)
                for handle in running
            ),
            return_exceptions=True,
        )
        replicas = [replica for answer in answers if isinstance(answer, list) for replica in answer]
        return [usage for usage in replicas if isinstance(usage, MemoryUsage)]

    async def model_info(self, name: str) -> ModelInfo:
        # Serve's controller reports the running replicas: a call to a busy model would wait in its
        # queue. The info itself never changes, so one call per model is enough.
        state = await self._states.current(name)
        if not state.running:
            message = f"no replica of {name} is running"
            if state.on_demand is not None:
                message = f"{name} is not loaded: {state.on_demand}"
            error = ModelNotLoaded(message, "model", retry_after=STATUS_TTL_S)
            error.on_demand = state.on_demand
            raise error
        if name not in self._infos:
            try:
                async with asyncio.timeout(INFO_TIMEOUT_S):
                    self._infos[name] = await call_handle(self._models[name].info)
            except (TimeoutError, RayError, RayServeException) as error:
                raise self._silent(name) from error
        return self._infos[name]

    def _silent(self, name: str) -> ModelNotLoaded:
        return ModelNotLoaded(
            f"no replica of {name} answers", "model", retry_after=self._retry_after(name)
        )

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
