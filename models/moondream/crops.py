"""Crops of a picture for the vision encoder (``image_crops.py`` upstream).

The encoder sees the picture as a whole, scaled down, and in overlapping local crops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.moondream.config import VisionConfig

HALVES_FROM = 1.4
"""Sides of a crop from which on a picture is cut into halves."""


@dataclass(frozen=True, eq=False)
class Crops:
    """The whole picture, and local crops of it unless one crop would cover the picture."""

    pixels: NDArray[np.uint8]
    """(crops, side, side, 3), values 0 to 255: the whole picture, then the local crops row by row.
    A single local crop would repeat the whole picture and is omitted."""
    tiling: tuple[int, int]
    """(rows, columns) of the local crops."""


def crop(picture: NDArray[np.uint8], config: VisionConfig) -> Crops:
    """Cut a picture (height, width, 3) into crops with sides of ``config.crop_size`` pixels.

    The picture is stretched to the area that the local crops cover together.
    """
    if config.halves:
        return _halve(Image.fromarray(picture), config.crop_size)
    side = config.crop_size
    overlap = 2 * config.overlap_margin * config.enc_patch_size
    step = side - overlap
    height, width = picture.shape[:2]
    rows, columns = select_tiling(height - overlap, width - overlap, step, config.max_crops)
    image = Image.fromarray(picture)
    crops = [_resize(image, side, side)]
    if rows * columns > 1:
        stretched = _resize(image, columns * step + overlap, rows * step + overlap)
        for top in range(0, rows * step, step):
            for left in range(0, columns * step, step):
                crops.append(stretched[top : top + side, left : left + side])
    return Crops(np.stack(crops), (rows, columns))


def stretched_size(width: int, height: int, config: VisionConfig) -> tuple[int, int]:
    """Return the (width, height) to which a picture is stretched before it is cut into crops."""
    if config.halves:
        rows, columns = select_halves(width, height, config.crop_size)
        return columns * config.crop_size, rows * config.crop_size
    overlap = 2 * config.overlap_margin * config.enc_patch_size
    step = config.crop_size - overlap
    rows, columns = select_tiling(height - overlap, width - overlap, step, config.max_crops)
    return columns * step + overlap, rows * step + overlap


def select_tiling(height: int, width: int, step: int, max_crops: int) -> tuple[int, int]:
    """Return the number of rows and columns of local crops.

    ``height`` and ``width`` are the picture's, less the overlap of two crops. ``step`` is the
    distance between neighboring crops. All are in pixels. There are about ``max_crops`` crops in
    all. As upstream, a picture that is one crop wide or high can get more.
    """
    if height <= step or width <= step:
        return 1, 1
    min_rows = math.ceil(height / step)
    min_columns = math.ceil(width / step)
    if min_rows * min_columns > max_crops:
        ratio = math.sqrt(max_crops / (min_rows * min_columns))
        return max(1, math.floor(min_rows * ratio)), max(1, math.floor(min_columns * ratio))
    rows = max(math.floor(math.sqrt(max_crops * height / width)), min_rows)
    columns = max(math.floor(math.sqrt(max_crops * width / height)), min_columns)
    if rows * columns > max_crops:
        if columns > rows:
            columns = math.floor(max_crops / rows)
        else:
            rows = math.floor(max_crops / columns)
    return max(1, rows), max(1, columns)


def select_halves(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the number of rows and columns of crops of a picture that is cut into halves.

    Source: ``preprocess.py`` in release 0.0.6 of the package ``moondream``.
    """
    if max(width, height) < side * HALVES_FROM:
        return 1, 1
    ratio = width / height
    return min([(1, 2), (2, 1), (2, 2)], key=lambda tiling: abs(tiling[1] / tiling[0] - ratio))


def _halve(image: Image.Image, side: int) -> Crops:
    rows, columns = select_halves(image.width, image.height, side)
    crops = [_resize(image, side, side, Image.Resampling.BICUBIC)]
    if rows * columns > 1:
        width, height = image.width // columns, image.height // rows
        for top in range(0, rows * height, height):
            for left in range(0, columns * width, width):
                part = image.crop((left, top, left + width, top + height))
                crops.append(_resize(part, side, side, Image.Resampling.BICUBIC))
    return Crops(np.stack(crops), (rows, columns))


def stitch(crops: Tensor, tiling: tuple[int, int], margin: int) -> Tensor:
    """Join the features of local crops into the features of one picture.

    ``crops``: (rows · columns, side, side, hidden). Returns (height, width, hidden). Crops overlap
    by two margins: each crop drops the ``margin`` next to its neighbor, whose features are used
    there.
    """
    rows, columns = tiling
    side = crops.shape[1]

    def inner(index: int, count: int) -> slice:
        start = 0 if index == 0 else margin
        end = side if index == count - 1 else side - margin
        return slice(start, end)

    bands = []
    for row in range(rows):
        band = [
            crops[row * columns + column, inner(row, rows), inner(column, columns)]
            for column in range(columns)
        ]
        bands.append(torch.cat(band, 1))
    return torch.cat(bands)


def _resize(
    image: Image.Image,
    width: int,
    height: int,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> NDArray[np.uint8]:
    return np.asarray(image.resize((width, height), resampling))
