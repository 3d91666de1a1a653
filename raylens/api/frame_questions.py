"""Questions about the frames of live video, which are requests as any other."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from raylens.api.access_log import AccessRecord, RequestMetrics
from raylens.api.context import Context
from raylens.api.frame_settings import DESCRIBE_VIDEO, video_question
from raylens.api.model_selection import select_model
from raylens.api.session_requests import KEY_CHECK_S, session_request
from raylens.api.shared import Shared
from raylens.core.config import AuthConfig
from raylens.core.errors import ModelFailed, PermissionDenied
from raylens.core.fairness import current_client
from raylens.core.key_source import KeySource
from raylens.core.keys import Scope, current_key
from raylens.core.types import Findings, PictureFile, Task
from raylens.realtime.frames import Frame
from raylens.realtime.jpeg import encode_jpeg
from raylens.realtime.live_session import AskModel, ModelAnswer
from raylens.realtime.pipeline import result_of, task_of
from raylens.realtime.ports import SessionClient
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature

FIELD = "frame"
"""What error messages call a frame."""


@dataclass
class FrameQuestions(AskModel):
    """Asks a model about the frames of one client's session.

    ``on_denied`` is called if the client's key is no longer valid, perhaps more than once.
    """

    shared: Shared
    metrics: RequestMetrics
    keys: KeySource
    client: SessionClient
    route: str
    method: str = "WEBRTC"
    """In place of HTTP's in the log."""
    scope: Scope = Scope.INFER
    """What the key must be for."""
    on_denied: Callable[[], object] = lambda: None

    async def __call__(self, frames: Sequence[Frame], settings: MoondreamConfig) -> ModelAnswer:
        """Raises ``PermissionDenied`` if the client's key is no longer valid."""
        self._check_key()
        context = self.shared.context
        assert context is not None
        record = AccessRecord(self.method, self.route, self.client.address, key=self.client.key)
        record.route = self.route
        async with session_request(self.shared, self.metrics, record):
            return await self._ask(context, frames, settings)

    def identify(self) -> None:
        """Set the current client and key.

        Raises ``PermissionDenied`` if the key may not be used any more, or if the server has asked
        for keys since the session began.
        """
        current_client.set(self.client.name)
        if not isinstance(self.shared.config.auth, AuthConfig):
            return
        name = self.client.key
        key = None if name is None else self.keys.ring.named(name)
        if key is None or self.scope not in key.scopes:
            raise PermissionDenied(f"the key {name!r} is no longer valid")
        current_key.set(key)

    def _check_key(self) -> None:
        try:
            self.identify()
        except PermissionDenied:
            self.on_denied()
            raise

    async def watch_key(self) -> None:
        """Look at the client's key now and then, for a session that may ask nothing."""
        while True:
            await asyncio.sleep(KEY_CHECK_S)
            with suppress(PermissionDenied):
                self._check_key()

    async def _ask(
        self, context: Context, frames: Sequence[Frame], settings: MoondreamConfig
    ) -> ModelAnswer:
        task = task_about(frames, settings)
        model = await select_model(context, settings.model or None, "realtime", task)
        request = context.new_request(
            uuid.uuid4().hex,
            time.time() + context.timeout_of(model),
            model,
            task,
            context.build_sampling(temperature=settings.temperature),
            None,
        )
        files = await asyncio.gather(
            *(asyncio.to_thread(encode_jpeg, each.pixels) for each in frames)
        )
        pictures = [PictureFile(file, FIELD) for file in files]
        texts: list[str] = []
        findings: Findings | None = None
        warnings: list[str] = []
        has_ended = False
        timings: dict[str, float] = {}
        async with aclosing(context.service.generate(request, pictures)) as deltas:
            async for delta in deltas:
                texts.append(delta.text)
                findings = delta.findings or findings
                warnings += delta.warnings
                has_ended = has_ended or delta.finish_reason is not None
                if delta.timings is not None:
                    timings = delta.timings.as_json()
        if not has_ended:
            raise ModelFailed("the answer ended early")
        result = result_of("".join(texts).strip(), findings)
        return ModelAnswer(result, model, timings, warnings)


def task_about(frames: Sequence[Frame], settings: MoondreamConfig) -> Task:
    """Return the task about one frame, or about a video of several."""
    if len(frames) == 1:
        return task_of(settings)
    prompt = settings.question
    if settings.feature is MoondreamFeature.CAPTION:
        prompt = DESCRIBE_VIDEO
    return video_question(prompt, [frame.time_s for frame in frames])
