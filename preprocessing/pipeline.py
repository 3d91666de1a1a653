"""The picture that the model should see: ``run`` applies a recipe, step by step, and keeps the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.decode import DecodeLimits, decode
from preprocessing.geometry import Geometry
from preprocessing.resize import fit
from raylens.types import Recipe


@dataclass(frozen=True)
class ProcessedImage:
    """RGB ``pixels`` of shape (height, width, 3), the map back to the original, and what was skipped on the way."""

    pixels: NDArray[np.uint8]
    geometry: Geometry
    warnings: tuple[str, ...] = ()


def run(data: bytes, recipe: Recipe, limits: DecodeLimits) -> ProcessedImage:
    """Decodes a picture file and applies ``recipe``. Raises what :func:`preprocessing.decode.decode` raises."""
    pixels, geometry = decode(data, limits)
    pixels = fit(pixels, recipe.max_side)
    return ProcessedImage(pixels, geometry.then((pixels.shape[1], pixels.shape[0])))
