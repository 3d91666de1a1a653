from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.pocket.video_files import encode_video
from preprocessing.clip import ProcessedVideo, expand, run_video
from preprocessing.geometry import IDENTITY, Geometry
from preprocessing.pipeline import ProcessedImage
from preprocessing.video import Sampling, VideoLimits
from raylens.core.recipe import PLAIN, ColorBalance
from raylens.core.types import (
    Caption,
    Chat,
    Detail,
    ImagePart,
    Message,
    Role,
    TextPart,
    VideoPart,
)

LIMITS = VideoLimits(10**7, 60, 10**6, 8, 10**7)
FRAMES = [np.full((48, 64, 3), 10 + 8 * number, np.uint8) for number in range(16)]


def image(level: int) -> ProcessedImage:
    pixels = np.full((2, 2, 3), level, np.uint8)
    return ProcessedImage(pixels, Geometry((2, 2), (2, 2), IDENTITY), (2, 2))


def video(*levels: int, seconds: float = 2.0) -> ProcessedVideo:
    frames = np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])
    times = tuple(np.linspace(0, seconds, len(levels), endpoint=False))
    return ProcessedVideo(frames, times, seconds)


def user(*parts: TextPart | ImagePart | VideoPart) -> Chat:
    return Chat((Message(Role.USER, parts),))


def test_a_recipe_applies_to_every_frame() -> None:
    recipe = replace(PLAIN, size=(32, 32), color_balance=ColorBalance(True, l_channel_boost=2.0))
    processed = run_video(encode_video(FRAMES, 8), Sampling(2), recipe, LIMITS)
    assert processed.frames.shape == (4, 24, 32, 3)
    assert processed.timestamps == pytest.approx((0, 0.625, 1.25, 1.875))
    assert processed.seconds == pytest.approx(2)
    plain = run_video(encode_video(FRAMES, 8), Sampling(2), PLAIN, LIMITS)
    assert plain.frames.shape == (4, 48, 64, 3)
    assert processed.frames[-1].mean() > plain.frames[-1].mean() + 10
    names = [step.name for step in processed.steps]
    assert names == ["decode", "resize", "color_balance"]
    assert processed.steps[0].did == "MP4, h264, 2.00 s, 4 frames"
    assert processed.steps[2].did.endswith(", 4 frames")


def test_a_video_becomes_its_frames() -> None:
    chat = user(TextPart("a"), ImagePart(0), VideoPart((1,)), ImagePart(2, Detail.LOW))
    expansion = expand(chat, [image(1), video(2, 3, 4, 5), image(6)], None)
    assert [picture[0, 0, 0] for picture in expansion.pictures] == [1, 2, 3, 4, 5, 6]
    assert expansion.owners == [0, 1, 1, 1, 1, 2]
    assert expansion.task == user(
        TextPart("a"),
        ImagePart(0),
        VideoPart((1, 2, 3, 4), 2.0, (0, 0.5, 1.0, 1.5)),
        ImagePart(5, Detail.LOW),
    )
    assert expansion.warnings == ()


def test_frames_that_were_sent_one_by_one_stay_a_video() -> None:
    chat = user(VideoPart((0, 1), 4.0))
    expansion = expand(chat, [image(1), image(2)], None)
    assert expansion.task == chat


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, (2,)), (2, (0, 3)), (3, (0, 2, 3)),
                          (4, (0, 1, 2, 3)), (9, (0, 1, 2, 3))],
)  # fmt: skip
def test_a_model_without_video_gets_evenly_chosen_frames(
    count: int, chosen: tuple[int, ...]
) -> None:
    expansion = expand(user(VideoPart((0,))), [video(1, 2, 3, 4)], count)
    assert expansion.task == user(*(ImagePart(index) for index in chosen))
    assert expansion.warnings == (
        f"video: read as {len(chosen)} of its frames; this model reads pictures only",
    )


def test_other_tasks_keep_their_picture() -> None:
    expansion = expand(Caption(), [image(3)], None)
    assert expansion.task == Caption()
    assert len(expansion.pictures) == 1
