"""Training pictures of the pocket Qwen2.5-VL, at its own size and as patches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.pocket.scenes import Scene, Shape
from training.pictures import draw_scenes
from training.qwen2_5_vl_checkpoint import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH
from training.windows import COLOR_INDEX, KIND_INDEX, Window, random_window

TOKEN = PATCH * MERGE
"""Side of an image token, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture at the model's own size."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), both multiples of 28."""
    scene: Scene
    window: Window
    """The part of the scene that the picture shows."""
    is_cropped: bool
    """Whether the window is smaller than the scene."""
    earlier: NDArray[np.uint8] | None = None
    """The frame before this one, if the picture is the second of a pair of a video's frames."""
    moving: Shape | None = None
    """The shape of the scene that is elsewhere in the earlier frame."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """The two frames that the model sees (2, height, width, 3); they are equal but in a
        video."""
        return np.stack([self.pixels if self.earlier is None else self.earlier, self.pixels])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.pixels.shape[0] // TOKEN, self.pixels.shape[1] // TOKEN

    def pixel_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel (x, y) of the picture that shows a point of the scene."""
        left, top, right, bottom = self.window
        height, width = self.pixels.shape[:2]
        column = round((x - left) / (right - left) * width)
        row = round((y - top) / (bottom - top) * height)
        return min(width, max(0, column)), min(height, max(0, row))

    def cell_at(self, pixel: tuple[int, int]) -> int:
        """Return the cell of the grid that contains a pixel (x, y) of an uncropped picture."""
        height, width = self.pixels.shape[:2]
        return min(2, 3 * pixel[1] // height) * 3 + min(2, 3 * pixel[0] // width)

    def box(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return the shape's box (x_min, y_min, x_max, y_max) in pixels of the picture."""
        x_min, y_min, x_max, y_max = shape.box
        return (*self.pixel_at(x_min, y_min), *self.pixel_at(x_max, y_max))


class Pictures(IterableDataset[Picture]):
    """An endless dataset of scenes at the model's own size."""

    def __init__(self, seed: int, max_side: int) -> None:
        self.seed = seed
        self.max_side = max_side

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in draw_scenes(rng, self.max_side):
            is_cropped = rng.random() < 0.25
            window = random_window(scene, rng) if is_cropped else (0, 0, scene.width, scene.height)
            resized = _resize(Image.fromarray(pixels).crop(window), rng)
            yield Picture(resized, scene, window, is_cropped)


def _resize(picture: Image.Image, rng: random.Random) -> NDArray[np.uint8]:
    """Resize to the model's own size, sometimes through another size as preprocessing may do it.

    One time in seven, that size has other proportions.
    """
    pick = rng.random()
    if pick < 0.4:
        scale = rng.uniform(112, 512) / max(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        if pick < 0.15:
            size = rng.randint(112, 512), rng.randint(112, 512)
        picture = picture.resize(size, rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BOX)))
    height, width = smart_resize(picture.height, picture.width, TOKEN, MIN_PIXELS, MAX_PIXELS)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Patches:
    """Pictures as the vision encoder's input, padded to (pictures, patches, …)."""

    values: Tensor
    """(pictures, patches, values of a patch), from −1 to 1."""
    angles: Tensor
    """(pictures, patches, head_dim): rotary angles."""
    full_mask: Tensor
    """(pictures, 1, patches, patches) for full attention: True if the key is not padding. A
    padded query attends to every key, because a softmax over no keys is NaN."""
    window_mask: Tensor
    """(pictures, 1, patches, patches) for window attention: True if both patches are in the same
    window."""
    counts: list[int]
    """Patches of each picture."""


def build_patches(pictures: list[Picture], head_dim: int, window: int, theta: float) -> Patches:
    """Cut pictures into patches in the image processor's order.

    The 2 × 2 patches of an image token are consecutive. ``window`` is the side of an attention
    window in image tokens.
    """
    values = []
    coordinates = []
    windows = []
    for picture in pictures:
        rows, columns = picture.grid
        frames = picture.frames.reshape(2, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
        patches = frames.transpose(1, 4, 2, 5, 7, 0, 3, 6)
        values.append(torch.from_numpy(patches.reshape(rows * columns * MERGE**2, -1)))
        axes = np.meshgrid(*map(np.arange, (rows, columns, MERGE, MERGE)), indexing="ij")
        row, column, inner_row, inner_column = (axis.reshape(-1) for axis in axes)
        patch_row = row * MERGE + inner_row
        patch_column = column * MERGE + inner_column
        coordinates.append(torch.from_numpy(np.stack([patch_row, patch_column], -1)))
        windows.append(torch.from_numpy(row // window * 100 + column // window))
    frequencies = theta ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    padded = pad_sequence(coordinates, batch_first=True).float()
    angles = (padded[..., None] * frequencies).flatten(2)
    window_ids = pad_sequence(windows, batch_first=True, padding_value=-1)
    is_same_window = window_ids[:, :, None] == window_ids[:, None]
    is_real = window_ids >= 0
    return Patches(
        pad_sequence(values, batch_first=True).float().div(127.5).sub(1),
        torch.cat([angles, angles], -1),
        (is_real[:, None] | ~is_real[:, :, None])[:, None],
        is_same_window[:, None],
        [len(patches) for patches in values],
    )


def probe_targets(pictures: list[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets of the probe for each image token.

    A token belongs to a shape if the shape's box contains the token's center, or if the token
    contains the shape's center. The targets are:

    - (tokens, 5): kind, color and cell of the shape, 0 for none, whether the token contains the
      shape's center, and whether the shape moves.
    - (tokens, 6): the token's own center, and the edges of the shape's box, in pixels.
    - (tokens, 6): a mask of the previous target, since only shapes have edges.
    """
    classes = []
    edges = []
    masks = []
    for picture in pictures:
        rows, columns = picture.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        x = column * TOKEN + TOKEN // 2
        y = row * TOKEN + TOKEN // 2
        token_classes = np.zeros((len(x), 5), np.int64)
        token_edges = np.zeros((len(x), 6), np.int64)
        token_edges[:, 0] = x
        token_edges[:, 1] = y
        for shape in picture.scene.shapes:
            left, top, right, bottom = picture.box(shape)
            center = picture.pixel_at(shape.x, shape.y)
            has_center = (abs(x - center[0]) <= TOKEN / 2) & (abs(y - center[1]) <= TOKEN / 2)
            in_box = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
            in_shape = has_center | in_box
            cell = 0 if picture.is_cropped else picture.cell_at(center) + 1
            token_classes[in_shape, :3] = KIND_INDEX[shape.kind], COLOR_INDEX[shape.color], cell
            token_classes[has_center, 3] = 1
            token_classes[in_shape, 4] = shape == picture.moving
            token_edges[in_shape, 2:] = left, top, right, bottom
        mask = np.repeat(token_classes[:, :1] > 0, 6, axis=1)
        mask[:, :2] = True
        classes.append(token_classes)
        edges.append(token_edges)
        masks.append(mask)
    return (
        torch.from_numpy(np.concatenate(classes)),
        torch.from_numpy(np.concatenate(edges)),
        torch.from_numpy(np.concatenate(masks)),
    )
