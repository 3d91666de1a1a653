"""The preprocessing pipeline: ``run`` applies a recipe step by step and tracks the geometry."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

from preprocessing import color, crop, profile
from preprocessing import denoise as noise
from preprocessing.decode import decode
from preprocessing.geometry import IDENTITY, Geometry, Matrix
from preprocessing.header import PictureLimits
from preprocessing.memory import Reserve
from preprocessing.resize import Size, resize, target_size
from raylens.core.errors import RaylensError
from raylens.core.recipe import Recipe
from raylens.core.types import StepReport

logger = logging.getLogger(__name__)

_SENDER_ERRORS = (OSError, ImageCms.PyCMSError, noise.TooSlow)
"""Errors caused by the sender's data or recipe. Any other error is logged."""

ENLARGED_BYTES_PER_PIXEL = 12
"""An enlarged picture, and what its filters take."""
Pixels = NDArray[np.uint8]
Enhancement = Callable[[Pixels], tuple[Pixels, str] | None]
"""Returns new pixels of the same shape and a description, or None if there is nothing to do."""


@dataclass(frozen=True)
class ProcessedImage:
    """A picture prepared for a model."""

    pixels: Pixels
    """(height, width, 3) RGB."""
    geometry: Geometry
    """Map back to the original picture."""
    stored_size: Size
    """(width, height) of the file's own pixels, before any EXIF rotation."""
    steps: tuple[StepReport, ...] = ()
    """All steps in order, with what each did."""
    warnings: tuple[str, ...] = ()
    """Steps that were skipped, and oddities of the file."""


def run(
    data: bytes,
    recipe: Recipe,
    limits: PictureLimits,
    check: Callable[[], None] = lambda: None,
    reserve: Reserve = lambda count: None,
) -> ProcessedImage:
    """Decode a picture file and apply ``recipe``.

    ``check`` is called between steps and often during slow ones. It may raise a ``RaylensError``
    to stop the work; that error propagates. ``reserve`` waits for the memory that the picture
    takes. Raises what :func:`preprocessing.decode.decode` raises.

    An enhancement that fails, or would take too long, is skipped, and the warnings name it. They
    also hold the reason if the sender's data or recipe caused it; otherwise the log does.
    """
    pipeline = _Pipeline(check)
    # A recipe may enlarge a picture. All is reserved at once: whoever held a part and waited for
    # the rest would wait for others that do the same.
    enlarges = not recipe.preserve_aspect_ratio or recipe.min_size > 0
    enlarged = math.prod(recipe.size) * ENLARGED_BYTES_PER_PIXEL if enlarges else 0
    pipeline.decode(data, recipe, limits, lambda count: reserve(count + enlarged))
    if recipe.smart_crop:
        pipeline.crop("smart_crop", crop.content_window)
        if not recipe.preserve_aspect_ratio:
            pipeline.crop("salient_window", lambda pixels: crop.salient_window(pixels, recipe.size))
    return _finish(pipeline, recipe, limits.max_filter_s)


def enhance(
    pixels: Pixels,
    recipe: Recipe,
    check: Callable[[], None] = lambda: None,
    max_filter_s: float = math.inf,
) -> ProcessedImage:
    """Apply ``recipe``, but for ``smart_crop``, to upright pixels. ``check`` is as in
    :func:`run`, and ``max_filter_s`` as in its limits."""
    pipeline = _Pipeline(check)
    height, width = pixels.shape[:2]
    pipeline.pixels = pixels
    pipeline.geometry = Geometry((width, height), (width, height), IDENTITY)
    pipeline.stored_size = (width, height)
    return _finish(pipeline, recipe, max_filter_s)


def _finish(pipeline: _Pipeline, recipe: Recipe, max_filter_s: float) -> ProcessedImage:
    """Resize and enhance the pipeline's picture."""
    check = pipeline.check
    pipeline.resize(recipe)
    if pipeline.profile is not None:
        pipeline.enhance("color_profile", pipeline.convert_to_srgb)
    if recipe.denoise.enabled:
        pipeline.enhance(
            "denoise",
            lambda pixels: noise.denoise(pixels, recipe.denoise, check, max_filter_s),
        )
    if recipe.color_balance.enabled:
        pipeline.enhance(
            "color_balance", lambda pixels: color.balance(pixels, recipe.color_balance)
        )
    return ProcessedImage(
        pipeline.pixels,
        pipeline.geometry,
        pipeline.stored_size,
        tuple(pipeline.steps),
        tuple(pipeline.warnings),
    )


@dataclass
class _Pipeline:
    """One run: the current picture, its geometry, and the steps so far."""

    check: Callable[[], None]
    pixels: Pixels = field(init=False)
    geometry: Geometry = field(init=False)
    stored_size: Size = field(init=False)
    profile: bytes | None = None
    steps: list[StepReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def decode(self, data: bytes, recipe: Recipe, limits: PictureLimits, reserve: Reserve) -> None:
        started = self._start()
        # After a crop the rest is scaled up, so the required size is known only without one.
        required_size = None if recipe.smart_crop else lambda size: target_size(size, recipe)
        decoded = decode(data, limits, required_size, reserve)
        self.pixels = decoded.pixels
        self.geometry = decoded.geometry
        self.stored_size = decoded.stored_size
        self.profile = decoded.profile
        self.warnings.extend(decoded.warnings)
        self._record("decode", decoded.description, started)

    def crop(self, name: str, find_window: Callable[[Pixels], crop.Window]) -> None:
        """Cut the picture to the window that ``find_window`` returns.

        If ``find_window`` fails, the picture stays as it is.
        """
        started = self._start()
        width, height = self._size
        try:
            left, top, right, bottom = find_window(self.pixels)
        except Exception as error:  # a failed enhancement never fails the request
            self._skip(name, error, started)
            return
        if (left, top, right, bottom) == (0, 0, width, height):
            self._record(name, "nothing to cut", started)
            return
        # A view would keep the uncut picture in memory.
        self.pixels = self.pixels[top:bottom, left:right].copy()
        new_width, new_height = self._size
        to_previous: Matrix = (
            new_width / width, 0, left / width,
            0, new_height / height, top / height,
        )  # fmt: skip
        self.geometry = self.geometry.then(self._size, to_previous)
        cut = f"{width}×{height} cut to {new_width}×{new_height} at {left}, {top}"
        self._record(name, cut, started)

    def resize(self, recipe: Recipe) -> None:
        started = self._start()
        width, height = self._size
        size = target_size(self._size, recipe)
        if size == self._size:
            self._record("resize", "nothing to do", started)
            return
        self.pixels = resize(self.pixels, size)
        self.geometry = self.geometry.then(size)
        self._record("resize", f"{width}×{height} to {size[0]}×{size[1]}", started)

    def convert_to_srgb(self, pixels: Pixels) -> tuple[Pixels, str] | None:
        """Apply the color profile. Returns None if the profile is sRGB."""
        assert self.profile is not None
        converted = profile.to_srgb(pixels, self.profile)
        if converted is None:
            return None
        return converted, f"{profile.description_of(self.profile)} to sRGB"

    def enhance(self, name: str, enhancement: Enhancement) -> None:
        """Apply ``enhancement``, or skip it if it fails."""
        started = self._start()
        try:
            result = enhancement(self.pixels)
        except RaylensError:
            raise
        except Exception as error:  # a failed enhancement never fails the request
            self._skip(name, error, started)
            return
        description = "nothing to do"
        if result is not None:
            self.pixels, description = result
        self._record(name, description, started)

    @property
    def _size(self) -> Size:
        return self.pixels.shape[1], self.pixels.shape[0]

    def _start(self) -> float:
        self.check()
        return time.perf_counter()

    def _record(self, name: str, did: str, started: float) -> None:
        self.steps.append(StepReport(name, did, time.perf_counter() - started))

    def _skip(self, name: str, error: Exception, started: float) -> None:
        self._record(name, "skipped", started)
        if isinstance(error, _SENDER_ERRORS):
            self.warnings.append(f"{name}: skipped ({error})"[:200])
            return
        logger.warning("%s was skipped", name, exc_info=error)
        self.warnings.append(f"{name}: skipped ({type(error).__name__})")
