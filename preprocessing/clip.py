"""A video file as a model sees it: sampled frames, with a recipe's enhancements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from preprocessing.memory import Reserve
from preprocessing.pipeline import ProcessedImage, enhance
from preprocessing.video import Sampling, VideoLimits, sample_video
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Chat,
    ImagePart,
    Message,
    StepReport,
    Task,
    TextPart,
    VideoPart,
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ProcessedVideo:
    """Frames of a video, prepared for a model."""

    frames: Pixels
    """(frames, height, width, 3) RGB."""
    timestamps: tuple[float, ...]
    """Seconds from the start."""
    seconds: float
    """The length of the video."""
    steps: tuple[StepReport, ...] = ()
    warnings: tuple[str, ...] = ()


def run_video(
    data: bytes,
    sampling: Sampling,
    recipe: Recipe,
    limits: VideoLimits,
    check: Callable[[], None] = lambda: None,
    reserve: Reserve = lambda count: None,
) -> ProcessedVideo:
    """Sample a video's frames, and apply ``recipe`` to each of them, but for ``smart_crop``.

    ``check`` and ``reserve`` are as in :func:`preprocessing.pipeline.run`. Raises what
    :func:`preprocessing.video.sample_video` raises.
    """
    started = time.perf_counter()
    sampling = replace(sampling, max_side=sampling.max_side or max(recipe.size))
    video = sample_video(data, limits, sampling, check, reserve)
    decode_step = StepReport("decode", video.description, time.perf_counter() - started)
    max_filter_s = limits.max_filter_s / len(video.frames)
    images = [enhance(frame, recipe, check, max_filter_s) for frame in video.frames]
    warnings = dict.fromkeys(warning for image in images for warning in image.warnings)
    return ProcessedVideo(
        np.stack([image.pixels for image in images]),
        video.timestamps,
        video.seconds,
        (decode_step, *_sum_steps(images)),
        (*video.warnings, *warnings),
    )


def _sum_steps(images: Sequence[ProcessedImage]) -> list[StepReport]:
    """Return one report for each step, with the time that it took for all frames."""
    reports = []
    for steps in zip(*(image.steps for image in images), strict=True):
        seconds = sum(step.seconds for step in steps)
        reports.append(StepReport(steps[0].name, f"{steps[0].did}, {len(steps)} frames", seconds))
    return reports


@dataclass(frozen=True)
class Expansion:
    """A task over pictures only."""

    task: Task
    pictures: list[Pixels]
    owners: list[int]
    """For each picture, the index of the file that it comes from."""
    warnings: tuple[str, ...] = ()


def expand(
    task: Task, media: Sequence[ProcessedImage | ProcessedVideo], frames_as_pictures: int | None
) -> Expansion:
    """Replace the videos of a task with their frames.

    If ``frames_as_pictures`` is not None, the model reads no videos, and a video becomes that many
    evenly chosen pictures.
    """
    pictures: list[Pixels] = []
    owners: list[int] = []
    places: list[range] = []
    """Indices in ``pictures`` of each item of ``media``."""
    for number, item in enumerate(media):
        first = len(pictures)
        pictures += list(item.frames) if isinstance(item, ProcessedVideo) else [item.pixels]
        places.append(range(first, len(pictures)))
        owners += [number] * len(places[-1])
    if not isinstance(task, Chat):
        return Expansion(task, pictures, owners)
    warnings: list[str] = []
    messages = tuple(
        replace(message, parts=_expand_parts(message, media, places, frames_as_pictures, warnings))
        for message in task.messages
    )
    return Expansion(replace(task, messages=messages), pictures, owners, tuple(warnings))


def _expand_parts(
    message: Message,
    media: Sequence[ProcessedImage | ProcessedVideo],
    places: Sequence[range],
    frames_as_pictures: int | None,
    warnings: list[str],
) -> tuple[TextPart | ImagePart | VideoPart, ...]:
    parts: list[TextPart | ImagePart | VideoPart] = []
    for part in message.parts:
        match part:
            case TextPart():
                parts.append(part)
            case ImagePart():
                parts.append(replace(part, index=places[part.index][0]))
            case VideoPart():
                video = _expand_video(part, media, places)
                if frames_as_pictures is None:
                    parts.append(video)
                    continue
                chosen = _choose(video.indices, frames_as_pictures)
                parts += [ImagePart(index) for index in chosen]
                warnings.append(
                    f"video: read as {len(chosen)} of its frames; this model reads pictures only"
                )
    return tuple(parts)


def _expand_video(
    part: VideoPart, media: Sequence[ProcessedImage | ProcessedVideo], places: Sequence[range]
) -> VideoPart:
    indices = tuple(index for item in part.indices for index in places[item])
    file = media[part.indices[0]]
    if not isinstance(file, ProcessedVideo):
        return replace(part, indices=indices)
    # The last frame is shown until the end.
    return VideoPart(indices, len(indices) / file.seconds, file.timestamps)


def _choose(indices: Sequence[int], count: int) -> list[int]:
    """Return ``count`` evenly spread elements: the middle one, or the first, …, and the last."""
    if count >= len(indices):
        return list(indices)
    if count == 1:
        return [indices[len(indices) // 2]]
    places = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return [indices[place] for place in places]
