"""The processor of a session: that of the built-in pipeline, or one around a plugin's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np

from raylens.core.errors import InvalidRequest
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.live_session import MAX_FRAMES, AskModel, LiveSession
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import MoondreamPipeline
from raylens.realtime.plugins import Pipeline
from raylens.realtime.sessions import PluginPipeline, check_frames, merge_params, take_known
from raylens.realtime.settings import MoondreamConfig

INITIAL = "initialParameters"
"""What error messages call a session's first parameters."""


def open_processor(
    pipeline: Pipeline,
    parameters: Mapping[str, Any],
    ask: AskModel,
    report: Report,
    executor: Executor,
    to_tensor: Callable[[Pixels], Any],
    max_frames: int = MAX_FRAMES,
) -> FrameProcessor:
    """Open the processor of a session.

    ``max_frames`` is the limit of ``frames``. Parameters that the pipeline doesn't have are
    reported. Raises ``InvalidRequest`` for invalid ones.
    """
    known = take_known(pipeline.config_class, parameters, report)
    merged = merge_params(pipeline, known, INITIAL)
    if pipeline.pipeline_class is MoondreamPipeline:
        settings = MoondreamConfig.model_validate(merged)
        check_frames(settings, max_frames, INITIAL)
        return LiveSession(ask, settings, report, executor, max_frames=max_frames)
    return PluginSession(pipeline, merged, report, executor, to_tensor)


class PluginSession(FrameProcessor):
    """Runs a plugin's pipeline on every frame, in a thread."""

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: Mapping[str, Any],
        report: Report,
        executor: Executor,
        to_tensor: Callable[[Pixels], Any],
    ) -> None:
        self._pipeline = pipeline
        self._parameters = dict(parameters)
        self._report = report
        self._executor = executor
        self._to_tensor = to_tensor
        self._instance: PluginPipeline | None = None
        """Made with the first frame, in its thread: it may load a model."""

    async def process(self, frame: Frame) -> Pixels:
        loop = asyncio.get_running_loop()
        run = partial(self._run, frame.pixels, dict(self._parameters))
        return await loop.run_in_executor(self._executor, run)

    def change(self, parameters: Mapping[str, Any]) -> None:
        known = take_known(self._pipeline.config_class, parameters, self._report)
        merged = {**self._parameters, **known}
        self._parameters = merge_params(self._pipeline, merged, "parameters")

    async def close(self) -> None:
        pass

    def _run(self, pixels: Pixels, parameters: Mapping[str, Any]) -> Pixels:
        """Return a plugin's frame as 8-bit values. Raises ``InvalidRequest`` if it isn't one."""
        if self._instance is None:
            self._instance = PluginPipeline(self._pipeline, parameters, self._to_tensor)
        output = self._instance(video=[pixels[None]], **parameters)["video"]
        if output.ndim != 4 or output.shape[0] != 1 or output.shape[3] != 3:
            shape = tuple(output.shape)
            raise InvalidRequest(f"the plugin returned a frame of shape {shape}", "video")
        shown: Pixels = np.clip(output[0] * 255 + 0.5, 0, 255).astype(np.uint8)
        return shown
