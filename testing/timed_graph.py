"""The real graph over models that answer after a fixed time, whatever they are asked.

A model's ``checkpoint`` is that time in seconds, such as ``0.2``, or the time of each part of an
answer that is streamed in parts, such as ``0.05*4``. It answers ``max_batch_size`` requests at a
time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.app import build_graph
from deployments.vision_model import VisionModel
from models.remote.concurrency import LimitedRuntime
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.types import Caption, Chat, Delta, FinishReason, Query, Usage, VisionRequest
from raylens.engine.model import Pixels


class TimedRuntime(LimitedRuntime):
    """Its answer is the name of its replica, and whether that has seen the picture before."""

    tasks = frozenset({Caption.name, Chat.name, Query.name})
    device = "cpu"
    failure: BaseException | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        seconds, _, parts = config.checkpoint.partition("*")
        self._seconds = float(seconds)
        self._parts = int(parts or 1)
        self._seen: set[bytes] = set()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        await self._limiter.acquire(request)
        try:
            await asyncio.sleep(self._seconds)
            digest = hashlib.sha1(b"".join(picture.tobytes() for picture in pictures)).digest()
            verdict = "seen" if digest in self._seen else "new"
            self._seen.add(digest)
            replica = serve.get_replica_context().replica_tag
            for _ in range(self._parts - 1):
                if request.stream:
                    yield Delta("part ", 0)
                await asyncio.sleep(self._seconds)
            yield Delta(f"{replica} {verdict}", 0, FinishReason.STOP, Usage(1, self._parts))
        finally:
            self._limiter.release()


class TimedModel(VisionModel):
    runtime = TimedRuntime

    def __init__(self, config: ModelConfig, app: AppConfig) -> None:
        super().__init__(config, app, self.runtime(config))


def build_timed_app(args: dict[str, Any]) -> Application:
    return build_graph(args, TimedModel)
