"""Drawing of scenes with several rasterizers, noises and encodings, so that a model learns the
shapes and not one rasterizer."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from models.pocket.scenes import Scene, Shape

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""
NOISE_LEVELS = 8
"""Largest noise, in levels of 0 to 255."""


def draw(scene: Scene, rng: random.Random) -> Pixels:
    """Draw a scene with a random brush, and random noise below or above the shapes."""
    noise = _noise(scene, rng)
    is_noise_on_top = rng.random() < 0.5
    canvas = np.full((scene.height, scene.width, 3), float(scene.background), np.float32)
    if not is_noise_on_top:
        canvas += noise
    brush = rng.choice(BRUSHES)
    for shape in scene.shapes:
        _paint(canvas, shape, brush)
    if is_noise_on_top:
        canvas += noise
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def encode(pixels: Pixels, rng: random.Random) -> tuple[bytes, str]:
    """Return a picture file and its media type: JPEG of quality 70 to 98, or PNG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if rng.random() < 0.35:
        picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    picture.save(
        buffer,
        "JPEG",
        quality=rng.randint(70, 98),
        subsampling=rng.choice((0, 1, 2)),
        progressive=rng.random() < 0.2,
    )
    return buffer.getvalue(), "image/jpeg"


def _noise(scene: Scene, rng: random.Random) -> NDArray[np.float32]:
    """Return noise of up to ±``NOISE_LEVELS``: none, uniform or normal, gray or colored."""
    generator = np.random.default_rng(rng.getrandbits(32))
    channels = rng.choice((1, 3))
    shape = (scene.height, scene.width, channels)
    strength = rng.uniform(0, NOISE_LEVELS)
    style = rng.choice(("none", "uniform", "normal"))
    if style == "none":
        return np.zeros((1, 1, 1), np.float32)
    if style == "uniform":
        return (generator.random(shape, np.float32) * 2 - 1) * np.float32(strength)
    noise = generator.standard_normal(shape, np.float32) * np.float32(strength / 2)
    return np.clip(noise, -NOISE_LEVELS, NOISE_LEVELS)


def _paint(canvas: NDArray[np.float32], shape: Shape, brush: Brush) -> None:
    """Blend a shape into the canvas, within a window around the shape."""
    x_min, y_min, x_max, y_max = shape.box
    left = max(0, int(x_min) - 2)
    top = max(0, int(y_min) - 2)
    window = canvas[top : int(y_max) + 3, left : int(x_max) + 3]
    coverage = brush(shape, left, top, window.shape[1], window.shape[0])[..., None]
    window += coverage * (np.asarray(shape.rgb, np.float32) - window)


def _corners(shape: Shape, left: int, top: int) -> list[tuple[float, float]]:
    """Return the corners of a square or a triangle in window coordinates."""
    x_min, x_max = shape.box[0] - left, shape.box[2] - left
    y_min, y_max = shape.box[1] - top, shape.box[3] - top
    if shape.kind == "square":
        return [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
    return [((x_min + x_max) / 2, y_min), (x_max, y_max), (x_min, y_max)]


def exact_brush(shape: Shape, left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
    """Compute coverage from the signed distance to the outline."""
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5
    if shape.kind == "circle":
        distance = shape.radius - np.hypot(x - (shape.x - left), y - (shape.y - top))
    else:
        distance = np.full((height, width), np.inf, np.float32)
        corners = _corners(shape, left, top)
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = np.hypot(x2 - x1, y2 - y1)
            to_side = ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) / length
            distance = np.minimum(distance, to_side)
    coverage: NDArray[np.float32] = np.clip(distance + 0.5, 0, 1).astype(np.float32)
    return coverage


def supersampled_brush(
    scale: int, resample: Image.Resampling = Image.Resampling.BOX, blur: float = 0.0
) -> Brush:
    """Return a brush that draws with Pillow at ``scale`` times the size, and reduces by a filter.

    A scale of 1 gives hard edges. ``blur`` is the radius of a Gaussian filter, in pixels.
    """

    def brush(shape: Shape, left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
        mask = Image.new("L", (width * scale, height * scale))
        pen = ImageDraw.Draw(mask)
        if shape.kind == "circle":
            x = (shape.x - left) * scale
            y = (shape.y - top) * scale
            r = shape.radius * scale
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        else:
            corners = _corners(shape, left, top)
            pen.polygon([(x * scale, y * scale) for x, y in corners], fill=255)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * scale))
        return _coverage(np.asarray(mask.resize((width, height), resample)))

    return brush


def opencv_brush(shape: Shape, left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
    """Draw with OpenCV's antialiased lines, in coordinates with four fractional bits."""
    mask = np.zeros((height, width), np.uint8)
    if shape.kind == "circle":
        center = (round((shape.x - left - 0.5) * 16), round((shape.y - top - 0.5) * 16))
        cv2.circle(mask, center, round(shape.radius * 16), 255, -1, cv2.LINE_AA, 4)
    else:
        corners = _corners(shape, left, top)
        fixed_point = [(round((x - 0.5) * 16), round((y - 0.5) * 16)) for x, y in corners]
        points: Any = np.array([fixed_point], np.int32)
        cv2.fillPoly(mask, points, (255,), cv2.LINE_AA, 4)
    return _coverage(mask)


def snapped_brush(
    shape: Shape, left: int, top: int, width: int, height: int
) -> NDArray[np.float32]:
    """Draw with Pillow at whole coordinates."""
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    if shape.kind == "triangle":
        corners = _corners(shape, left, top)
        pen.polygon([(round(x), round(y)) for x, y in corners], fill=255)
    else:
        x, y, r = round(shape.x - left), round(shape.y - top), round(shape.radius)
        paint = pen.ellipse if shape.kind == "circle" else pen.rectangle
        paint((x - r, y - r, x + r, y + r), fill=255)
    return _coverage(np.asarray(mask))


def _coverage(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    return mask.astype(np.float32) / np.float32(255)


Brush = Callable[[Shape, int, int, int, int], NDArray[np.float32]]
"""Maps a shape, and the left, top, width and height of a window, to the shape's coverage in [0, 1],
(height, width)."""
BRUSHES: tuple[Brush, ...] = (
    exact_brush,
    opencv_brush,
    supersampled_brush(1),
    supersampled_brush(2),
    supersampled_brush(4),
    supersampled_brush(4, Image.Resampling.LANCZOS),
    supersampled_brush(3, Image.Resampling.BICUBIC),
    supersampled_brush(2, blur=0.5),
    supersampled_brush(2, blur=1.0),
    snapped_brush,
)
