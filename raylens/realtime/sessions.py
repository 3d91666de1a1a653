"""Instances of pipelines: the built-in one over a model, and those of plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from raylens.core.errors import InvalidRequest
from raylens.realtime.frames import Report
from raylens.realtime.pipeline import FrameModel, MoondreamPipeline, read_frame
from raylens.realtime.plugins import Pipeline, Registry
from raylens.realtime.settings import MoondreamConfig

S = TypeVar("S", bound=BaseModel)

IGNORED = "ignored"
"""The type of a message about parameters."""
FramePipeline = Callable[..., dict[str, NDArray[np.float32]]]
"""Maps ``video=[frame]`` and parameters to ``{"video": frame}``, as
:class:`raylens.realtime.pipeline.MoondreamPipeline` does."""


def find_pipeline(registry: Registry, pipeline_id: str, field: str = "pipeline_id") -> Pipeline:
    """Return a pipeline. Raises ``InvalidRequest``, which lists the known ones."""
    if pipeline_id not in registry.pipelines:
        known = ", ".join(registry.pipelines)
        raise InvalidRequest(
            f"{field}: unknown pipeline {pipeline_id[:64]!r}; known: {known}", field
        )
    return registry.pipelines[pipeline_id]


def merge_params(
    pipeline: Pipeline, params: Mapping[str, Any], field: str = "load_params"
) -> dict[str, Any]:
    """Return a pipeline's default settings with changes. Raises ``InvalidRequest``.

    The result is JSON.
    """
    settings = validate_settings(pipeline.config_class, params, field)
    try:
        return settings.model_dump(mode="json")
    except PydanticSerializationError as error:
        raise InvalidRequest(f"{field}: not JSON: {error}"[:300], field) from None


def validate_settings(config_class: type[S], params: Mapping[str, Any], field: str) -> S:
    """Return the settings of a pipeline. Raises ``InvalidRequest``, which names the setting."""
    try:
        return config_class.model_validate(dict(params))
    except ValidationError as error:
        details = error.errors()[0]
        name = ".".join((field, *map(str, details["loc"])))
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] == "extra_forbidden":
            known = ", ".join(config_class.model_fields)
            message = f"no such setting; known: {known}"
        raise InvalidRequest(f"{name}: {message}", name) from None


def take_known(
    config_class: type[BaseModel], parameters: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    """Return the parameters that a pipeline has, and report the names of the others, which are
    ignored: frontends send the parameters of all their pipelines at once."""
    allows_others = config_class.model_config.get("extra") == "allow"
    fields = config_class.model_fields
    known = {name: value for name, value in parameters.items() if name in fields or allows_others}
    if unknown := sorted(parameters.keys() - known.keys()):
        report({"type": IGNORED, "parameters": unknown})
    return known


def change_settings(
    settings: MoondreamConfig, changes: Mapping[str, Any], max_frames: int
) -> MoondreamConfig:
    """Return settings with changes. Raises ``InvalidRequest``."""
    values = {**settings.model_dump(mode="json"), **changes}
    changed = validate_settings(MoondreamConfig, values, "parameters")
    check_frames(changed, max_frames, "parameters")
    return changed


def check_frames(settings: MoondreamConfig, limit: int, field: str) -> None:
    """Raise ``InvalidRequest`` if a question would be about too many frames."""
    if settings.frames > limit:
        name = f"{field}.frames"
        raise InvalidRequest(
            f"{name}: {settings.frames}; the limit is {limit}", name, limit, settings.frames
        )


def open_pipeline(
    pipeline: Pipeline,
    params: Mapping[str, Any],
    model: FrameModel,
    to_tensor: Callable[[NDArray[np.uint8]], Any],
) -> FramePipeline:
    """Return an instance of a pipeline with the given settings.

    ``model`` answers for the built-in pipeline, and ``to_tensor`` turns arrays into a plugin's
    frames. Raises ``InvalidRequest``, and what a plugin raises.
    """
    merged = merge_params(pipeline, params)
    if pipeline.pipeline_class is MoondreamPipeline:
        return MoondreamPipeline(model, **merged)
    return PluginPipeline(pipeline, merged, to_tensor)


class PluginPipeline:
    """A pipeline of Scope's interface, which gets tensors and every setting with each frame."""

    def __init__(
        self,
        pipeline: Pipeline,
        params: Mapping[str, Any],
        to_tensor: Callable[[NDArray[np.uint8]], Any],
    ) -> None:
        self._pipeline = pipeline
        self._params = dict(params)
        self._to_tensor = to_tensor
        self._instance = pipeline.pipeline_class(**self._params)
        if hasattr(self._instance, "prepare"):
            self._instance.prepare(**self._params)

    def __call__(self, video: Sequence[Any], **parameters: Any) -> dict[str, NDArray[np.float32]]:
        """Return the plugin's frame, float32 (1, H, W, C) in [0, 1], as an array.

        Raises ``InvalidRequest`` for invalid frames and parameters, and what the plugin raises.
        """
        frame = read_frame(video)
        settings = merge_params(self._pipeline, {**self._params, **parameters}, "parameters")
        output = self._instance(video=[self._to_tensor(frame[None])], **settings)
        return {"video": np.asarray(output["video"], np.float32)}
