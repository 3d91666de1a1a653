"""A picture as the vision encoder sees it: whole, and in overlapping crops (``image_crops.py``
upstream)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.moondream.config import VisionConfig


@dataclass(frozen=True, eq=False)
class Crops:
    """``pixels`` (crops, side, side, 3) of 0 to 255: the whole picture, and then ``tiling`` (rows,
    columns) of crops, row by row. Where there would be one, it shows the same as the whole, and is
    left out."""

    pixels: NDArray[np.uint8]
    tiling: tuple[int, int]


def crop(picture: NDArray[np.uint8], config: VisionConfig) -> Crops:
    """Cuts a picture (height, width, 3), stretched so that crops of ``config.crop_size`` fill it."""
    side, margin = config.crop_size, 2 * config.overlap_margin * config.enc_patch_size
    step = side - margin
    height, width = picture.shape[:2]
    rows, columns = tiling(height - margin, width - margin, step, config.max_crops)
    image = Image.fromarray(picture)
    shown = [_resized(image, side, side)]
    if rows * columns > 1:
        stretched = _resized(image, columns * step + margin, rows * step + margin)
        shown += [
            stretched[row * step : row * step + side, column * step : column * step + side]
            for row in range(rows)
            for column in range(columns)
        ]
    return Crops(np.stack(shown), (rows, columns))


def tiling(height: int, width: int, step: int, most: int) -> tuple[int, int]:
    """Rows and columns of crops, each of which shows ``step`` pixels of its own: about ``most`` in
    all, and more of a picture that is one crop wide, as it is upstream."""
    if height <= step or width <= step:
        return 1, 1
    least_rows, least_columns = math.ceil(height / step), math.ceil(width / step)
    if least_rows * least_columns > most:
        ratio = math.sqrt(most / (least_rows * least_columns))
        return max(1, math.floor(least_rows * ratio)), max(1, math.floor(least_columns * ratio))
    rows = max(math.floor(math.sqrt(most * height / width)), least_rows)
    columns = max(math.floor(math.sqrt(most * width / height)), least_columns)
    if rows * columns > most:
        if columns > rows:
            columns = math.floor(most / rows)
        else:
            rows = math.floor(most / columns)
    return max(1, rows), max(1, columns)


def stitch(crops: Tensor, tiling: tuple[int, int], margin: int) -> Tensor:
    """States of crops (rows · columns, side, side, hidden) as those of one picture (height, width,
    hidden): of the ``margin`` at which two overlap, each keeps its own side's."""
    rows, columns = tiling
    side = crops.shape[1]

    def kept(index: int, count: int) -> slice:
        return slice(0 if index == 0 else margin, side if index == count - 1 else side - margin)

    lines = [
        torch.cat(
            [
                crops[row * columns + column, kept(row, rows), kept(column, columns)]
                for column in range(columns)
            ],
            1,
        )
        for row in range(rows)
    ]
    return torch.cat(lines)


def _resized(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
