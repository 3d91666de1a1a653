"""Color profiles (ICC.1:2022) to sRGB, with Little CMS."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_INVISIBLE = 2
"""Levels by which a profile may differ from sRGB and still count as it."""


def name_of(profile: bytes) -> str:
    """What a profile calls itself. Raises ``PyCMSError`` and ``OSError`` for one that can't be read."""
    return ImageCms.getProfileDescription(_open(profile)).strip()[:80]


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8] | None:
    """RGB pixels (height, width, 3) in sRGB; None where the profile is sRGB as far as one can see.

    Raises ``PyCMSError`` and ``OSError`` for a profile that can't be used.
    """
    transform = _transform(profile)
    if transform is None:
        return None
    picture = Image.fromarray(pixels)
    ImageCms.applyTransform(picture, transform, inPlace=True)
    return np.asarray(picture)


def picture_to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A gray or CMYK picture in RGB by its profile. Raises as :func:`to_srgb` does."""
    return ImageCms.profileToProfile(  # type: ignore[return-value]
        picture, _open(profile), ImageCms.createProfile("sRGB"), _INTENT, outputMode="RGB", flags=_FLAGS
    )


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    transform = ImageCms.buildTransform(_open(profile), ImageCms.createProfile("sRGB"), "RGB", "RGB", _INTENT, _FLAGS)
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    samples = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    seen = np.asarray(ImageCms.applyTransform(Image.fromarray(samples), transform), np.int16)
    return None if np.abs(seen - samples).max() <= _INVISIBLE else transform


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
