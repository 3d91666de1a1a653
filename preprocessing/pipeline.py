"""The picture that the model should see: ``run`` applies a recipe, step by step, and keeps the way
back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

from preprocessing import color, crop, profile
from preprocessing import denoise as noise
from preprocessing.decode import DecodeLimits, decode
from preprocessing.geometry import Geometry, Matrix
from preprocessing.resize import Size, resize, target_size
from raylens.core.errors import RaylensError
from raylens.core.recipe import Recipe
from raylens.core.types import Step

logger = logging.getLogger(__name__)

_SENDERS = (OSError, ImageCms.PyCMSError)
"""What goes wrong by the sender's data; anything else is for the log."""

Pixels = NDArray[np.uint8]
Enhancement = Callable[[Pixels], tuple[Pixels, str] | None]
"""Other pixels of the same shape and what was done, or None where nothing was to be done."""


@dataclass(frozen=True)
class ProcessedImage:
    """RGB ``pixels`` of shape (height, width, 3), the map back to the original, what was done and
    what was skipped."""

    pixels: Pixels
    geometry: Geometry
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()


def run(
    data: bytes, recipe: Recipe, limits: DecodeLimits, check: Callable[[], None] = lambda: None
) -> ProcessedImage:
    """Decodes a picture file and applies ``recipe``.

    ``check`` is called between steps, and often during slow ones; it may raise a ``RaylensError``
    to end the work. Raises that, and what :func:`preprocessing.decode.decode` raises. An
    enhancement that fails is skipped and named in the warnings; the log tells why.
    """
    work = _Work(check)
    work.decode(data, recipe, limits)
    if recipe.smart_crop:
        work.crop("smart_crop", crop.without_bars)
        if not recipe.preserve_aspect_ratio:
            work.crop("salient_window", lambda pixels: crop.salient_window(pixels, recipe.size))
    work.resize(recipe)
    if work.profile is not None:
        work.enhance("color_profile", work.convert)
    if recipe.denoise.enabled:
        work.enhance("denoise", lambda pixels: noise.denoise(pixels, recipe.denoise, check))
    if recipe.color_balance.enabled:
        work.enhance("color_balance", lambda pixels: color.balance(pixels, recipe.color_balance))
    return ProcessedImage(work.pixels, work.geometry, tuple(work.steps), tuple(work.warnings))


@dataclass
class _Work:
    """One picture on its way."""

    check: Callable[[], None]
    pixels: Pixels = field(init=False)
    geometry: Geometry = field(init=False)
    profile: bytes | None = None
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def decode(self, data: bytes, recipe: Recipe, limits: DecodeLimits) -> None:
        started = self._start()
        # What is cut away makes the rest larger: only an uncut picture's size is known beforehand.
        enough = None if recipe.smart_crop else lambda size: target_size(size, recipe)
        decoded = decode(data, limits, enough)
        self.pixels, self.geometry, self.profile = decoded.pixels, decoded.geometry, decoded.profile
        self.warnings.extend(decoded.warnings)
        self._note("decode", decoded.found, started)

    def crop(self, name: str, find: Callable[[Pixels], crop.Window]) -> None:
        """Cuts to the window that ``find`` finds; where it fails, to nothing less."""
        started, (width, height) = self._start(), self._size
        try:
            left, top, right, bottom = find(self.pixels)
        except (
            Exception
        ) as error:  # whatever is wrong with an enhancement, the picture is still there
            self._skip(name, error, started)
            return
        if (left, top, right, bottom) == (0, 0, width, height):
            self._note(name, "nothing to cut", started)
            return
        self.pixels = self.pixels[
            top:bottom, left:right
        ].copy()  # a view would keep the whole in memory
        back: Matrix = (
            (right - left) / width,
            0,
            left / width,
            0,
            (bottom - top) / height,
            top / height,
        )
        self.geometry = self.geometry.then(self._size, back)
        self._note(
            name, f"{width}×{height} cut to {right - left}×{bottom - top} at {left}, {top}", started
        )

    def resize(self, recipe: Recipe) -> None:
        started, before = self._start(), self._size
        size = target_size(before, recipe)
        if size == before:
            self._note("resize", "nothing to do", started)
            return
        self.pixels = resize(self.pixels, size)
        self.geometry = self.geometry.then(size)
        self._note("resize", f"{before[0]}×{before[1]} to {size[0]}×{size[1]}", started)

    def convert(self, pixels: Pixels) -> tuple[Pixels, str] | None:
        """By the color profile; None where that is sRGB."""
        assert self.profile is not None
        converted = profile.to_srgb(pixels, self.profile)
        return (
            None if converted is None else (converted, f"{profile.name_of(self.profile)} to sRGB")
        )

    def enhance(self, name: str, step: Enhancement) -> None:
        started = self._start()
        try:
            done = step(self.pixels)
        except RaylensError:
            raise
        except Exception as error:  # as above
            self._skip(name, error, started)
            return
        if done is not None:
            self.pixels = done[0]
        self._note(name, "nothing to do" if done is None else done[1], started)

    @property
    def _size(self) -> Size:
        return self.pixels.shape[1], self.pixels.shape[0]

    def _start(self) -> float:
        self.check()
        return time.perf_counter()

    def _note(self, name: str, did: str, started: float) -> None:
        self.steps.append(Step(name, did, time.perf_counter() - started))

    def _skip(self, name: str, error: Exception, started: float) -> None:
        self._note(name, "skipped", started)
        if isinstance(error, _SENDERS):
            self.warnings.append(f"{name}: skipped ({error})"[:200])
            return
        logger.warning("%s was skipped", name, exc_info=error)
        self.warnings.append(f"{name}: skipped ({type(error).__name__})")
