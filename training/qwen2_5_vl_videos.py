"""Training videos of the pocket Qwen2.5-VL, and questions about them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.pocket.drawing import draw
from models.pocket.scenes import CELLS, Question, Scene, Shape
from models.pocket.video_files import FAST_VP9, Pixels, encode_video
from models.pocket.videos import VideoScene, random_video
from preprocessing.video import Sampling, VideoLimits, sample_video
from training.qwen2_5_vl_checkpoint import MIN_PIXELS
from training.qwen2_5_vl_pictures import TOKEN, Picture
from training.qwen2_5_vl_rows import Prompts
from training.rows import Row

FRAMES_PER_SECOND = 2.0
MAX_FRAMES = 12
CODECS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("libx264", "mp4", {}),
    ("libx264", "mp4", {}),
    ("libvpx-vp9", "webm", FAST_VP9),
)
LIMITS = VideoLimits(10**8, 60, 10**6, MAX_FRAMES, 10**8)
MIN_MOVE = 0.02
"""Least move between two frames that a model can see, as a share of the picture's side."""
VARIANTS = {
    "describe": ("Describe this video.", "Describe the video clip.", "What is in the video?"),
    "end": ("How many shapes are there in the end?", "How many shapes does the video end with?"),
    "moves": ("Which shape is moving?", "What moves?"),
    "first": ("Which shape comes first?", "What appears first?"),
}
"""Other words for the questions, by category."""


@dataclass(frozen=True)
class Video:
    """Pairs of a video's frames at the model's own size."""

    pairs: list[Picture]
    questions: list[Question]
    seconds_per_pair: float

    def positions(self, start: int, positions_per_second: int) -> NDArray[np.int64]:
        """Return the time, row and column of every image token (3, tokens), from ``start``."""
        shape = (len(self.pairs), *self.pairs[0].grid)
        time, row, column = np.unravel_index(np.arange(np.prod(shape)), shape)
        time = (time * (positions_per_second * self.seconds_per_pair)).astype(np.int64)
        return start + np.stack([time, row, column])


class Videos(IterableDataset[Video]):
    """An endless dataset of videos."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[Video]:
        rng = random.Random(self.seed)
        while True:
            yield make_video(random_video(rng), rng)


def make_video(video: VideoScene, rng: random.Random) -> Video:
    """Draw a video, and sample its frames evenly, the first and the last one included.

    One time in four it is coded as a file and decoded again, which takes as long as drawing six
    others.
    """
    times, drawn = _draw_file(video, rng) if rng.random() < 0.25 else _draw_frames(video, rng)
    count = len(times)
    scenes = [video.at(time) for time in times]
    canvas = video.canvas
    height, width = smart_resize(canvas.height, canvas.width, TOKEN, MIN_PIXELS, MIN_PIXELS)
    frames = [
        np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        for pixels in drawn
    ]
    whole = (0, 0, canvas.width, canvas.height)
    pairs = [
        Picture(
            frames[index + 1],
            scenes[index + 1],
            whole,
            False,
            earlier=frames[index],
            moving=_moving(video, times[index], times[index + 1]),
        )
        for index in range(0, count, 2)
    ]
    questions = [*video.questions(), *build_auxiliary_questions(video)]
    return Video(pairs, questions, 2 * video.seconds / count)


def build_auxiliary_questions(video: VideoScene) -> list[Question]:
    """Return questions about single shapes, which need the same lookups in time as the benchmark's.

    To look at one time only, and to compare two, are the last skills that the model learns.
    """
    result = []
    names = [track.shape.name for track in video.tracks]
    for track in video.tracks:
        name = track.shape.name
        if names.count(name) > 1:
            continue
        for words, shape in (("at the end", track.last), ("when it appears", track.shape)):
            text = f"Where is the {name} {words}?"
            result.append(Question(f"where {words}", text, CELLS[shape.cell]))
        answer = "yes" if track.target is not None else "no"
        result.append(Question("does it move", f"Does the {name} move?", answer))
        cell = CELLS[track.last.cell]
        result.append(Question("what ends", f"What shape is at the {cell} at the end?", name))
    return result


def _moving(video: VideoScene, start: float, end: float) -> Shape | None:
    """Return the shape that moves visibly from one time to another, at its last place."""
    canvas = video.canvas
    for track in video.tracks:
        before, after = track.at(start), track.at(end)
        if before is None or after is None:
            continue
        move = max(abs(after.x - before.x) / canvas.width, abs(after.y - before.y) / canvas.height)
        if move >= MIN_MOVE:
            return after
    return None


def _draw_frames(video: VideoScene, rng: random.Random) -> tuple[list[float], list[Pixels]]:
    """Return the times of frames that are sent one by one, and the frames."""
    count = min(MAX_FRAMES, max(2, 2 * round(video.seconds * FRAMES_PER_SECOND / 2)))
    times = [video.seconds * index / (count - 1) for index in range(count)]
    quality = rng.choice((None, rng.randint(70, 95)))
    seed = rng.getrandbits(32)
    return times, [_draw(video.at(time), seed, quality) for time in times]


def _draw_file(video: VideoScene, rng: random.Random) -> tuple[list[float], list[Pixels]]:
    """Return the times of the frames that are sampled from a video file, and the frames."""
    rate = rng.randint(8, 30)
    seed = rng.getrandbits(32)
    frames = []
    for number in range(round(video.seconds * rate)):
        pixels = draw(video.at(number / rate), random.Random(seed))
        height, width = (side - side % 2 for side in pixels.shape[:2])
        frames.append(np.ascontiguousarray(pixels[:height, :width]))
    codec, container, options = rng.choice(CODECS)
    data = encode_video(frames, rate, codec, container, options)
    sampled = sample_video(data, LIMITS, Sampling(FRAMES_PER_SECOND))
    return list(sampled.timestamps), list(sampled.frames)


def _draw(scene: Scene, seed: int, quality: int | None) -> Pixels:
    """Draw a frame as the others of its video; as a JPEG of a quality, unless that is None."""
    picture = Image.fromarray(draw(scene, random.Random(seed)))
    if quality is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        picture = Image.open(buffer)
    return np.asarray(picture)


def build_video_row(
    first_index: int, video: Video, prompts: Prompts, positions_per_second: int, rng: random.Random
) -> Row:
    """Return a row with a video and all questions about it, or one question before the video.

    The features of its pairs begin at ``first_index``.
    """
    questions = [(question, _phrase(question, rng)) for question in video.questions]
    opening = prompts.opening()
    if rng.random() < 0.25:
        question, text = rng.choice(questions)
        segments = [prompts.build_segment("text first video", ("", question.answer))]
        opening += text
    else:
        segments = [
            prompts.build_segment(f"video {question.category}", (text, question.answer))
            for question, text in questions
        ]
    head = prompts.encode(opening + "<|vision_start|>")
    tail = prompts.encode("<|vision_end|>")
    positions = video.positions(len(head), positions_per_second)
    after = len(head) + max(video.pairs[0].grid)
    ids = head + [prompts.video_id] * positions.shape[1] + tail
    prefix_positions = np.concatenate(
        [
            np.tile(np.arange(len(head)), (3, 1)),
            positions,
            np.tile(after + np.arange(len(tail)), (3, 1)),
        ],
        axis=1,
    )
    indices = list(range(first_index, first_index + len(video.pairs)))
    return Row(ids, indices, segments, prefix_positions, after + len(tail))


def _phrase(question: Question, rng: random.Random) -> str:
    variants = VARIANTS.get(question.category)
    return rng.choice(variants) if variants and rng.random() < 0.3 else question.text
