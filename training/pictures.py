"""Training pictures: drawn endlessly in a worker process, and each used several times."""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset

from models.pocket.drawing import draw, encode
from models.pocket.scenes import Scene, random_scene
from training.smolvlm_checkpoint import TILE

P = TypeVar("P")
"""A family's training picture."""


@dataclass(frozen=True)
class Picture:
    """A picture as one tile, and the scene that it shows."""

    tile: NDArray[np.uint8]
    """(192, 192, 3)."""
    scene: Scene


def to_tile(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Resize pixels to one square tile, in one of the ways that a server may do it."""
    picture = Image.fromarray(pixels)
    if rng.random() < 0.5 and max(picture.size) != TILE:
        longest_side = rng.choice((TILE, 2 * TILE))
        scale = longest_side / max(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    filters = (Image.Resampling.LANCZOS, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((TILE, TILE), rng.choice(filters)))


def draw_scenes(rng: random.Random, max_side: int) -> Iterator[tuple[Scene, NDArray[np.uint8]]]:
    """Yield random scenes and their pixels endlessly. Most are encoded and decoded once.

    More than half have three shapes, which are the hardest to tell apart.
    """
    while True:
        scene = random_scene(rng, 1024 if rng.random() < 0.03 else max_side)
        if len(scene.shapes) < 3 and rng.random() < 0.5:
            continue
        pixels = draw(scene, rng)
        if rng.random() < 0.65:
            pixels = np.asarray(Image.open(io.BytesIO(encode(pixels, rng)[0])).convert("RGB"))
        yield scene, pixels


class Pictures(IterableDataset[Picture]):
    """An endless dataset of scenes, each resized to one tile."""

    def __init__(self, seed: int, max_side: int) -> None:
        self.seed = seed
        self.max_side = max_side

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in draw_scenes(rng, self.max_side):
            yield Picture(to_tile(pixels, rng), scene)


class Pool(Generic[P]):
    """The latest ``size`` pictures of a source."""

    def __init__(self, source: Iterator[list[P]], size: int) -> None:
        self._source = source
        self._pictures: deque[P] = deque(maxlen=size)

    def sample(self, count: int, fresh: int, rng: random.Random) -> list[P]:
        """Add at least ``fresh`` new pictures to the pool and return ``count`` random ones."""
        while fresh > 0 or len(self._pictures) < count:
            batch = next(self._source)
            self._pictures.extend(batch)
            fresh -= len(batch)
        return rng.sample(self._pictures, count)
