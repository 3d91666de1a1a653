"""Pictures to train on: drawn without end in a process of their own, each used a few times."""

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


@dataclass(frozen=True)
class Picture:
    """A tile of shape (192, 192, 3) and the scene that it shows."""

    tile: NDArray[np.uint8]
    scene: Scene


def to_tile(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """One square tile, by one of the ways in which a server may come to it."""
    picture = Image.fromarray(pixels)
    if rng.random() < 0.5 and max(picture.size) != TILE:
        edge = rng.choice((TILE, 2 * TILE))
        scale = edge / max(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    filters = (Image.Resampling.LANCZOS, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((TILE, TILE), rng.choice(filters)))


def drawn_scenes(rng: random.Random, max_side: int) -> Iterator[tuple[Scene, NDArray[np.uint8]]]:
    """Scenes without end and their pixels, most of them encoded and decoded again."""
    while True:
        scene = random_scene(rng, 1024 if rng.random() < 0.03 else max_side)
        pixels = draw(scene, rng)
        if rng.random() < 0.65:
            pixels = np.asarray(Image.open(io.BytesIO(encode(pixels, rng)[0])).convert("RGB"))
        yield scene, pixels


class Pictures(IterableDataset[Picture]):
    """Scenes without end, brought to one tile."""

    def __init__(self, seed: int, max_side: int) -> None:
        self.seed = seed
        self.max_side = max_side

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in drawn_scenes(rng, self.max_side):
            yield Picture(to_tile(pixels, rng), scene)


class Pool(Generic[P]):
    """The latest pictures; ``draw`` takes new ones as they come and mixes them with earlier ones."""

    def __init__(self, source: Iterator[list[P]], size: int) -> None:
        self.source = source
        self.kept: deque[P] = deque(maxlen=size)

    def draw(self, count: int, fresh: int, rng: random.Random) -> list[P]:
        while fresh > 0 or len(self.kept) < count:
            batch = next(self.source)
            self.kept.extend(batch)
            fresh -= len(batch)
        return rng.sample(self.kept, count)
