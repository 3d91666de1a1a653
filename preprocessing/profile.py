"""Color profiles (ICC.1:2022) to sRGB, with Little CMS."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
MAX_BYTES = 4 * 2**20
"""Of a profile."""
_KEPT = 8
"""Profiles whose transforms are kept, with the profiles themselves."""
_INVISIBLE = 2
"""Levels by which a profile may differ from sRGB and still count as it."""


def name_of(profile: bytes) -> str:
    """What a profile calls itself."""
    try:
        return ImageCms.getProfileDescription(_open(profile)).strip()[:80]
    except (ImageCms.PyCMSError, OSError):
        return "a color profile"


def is_gray(profile: bytes) -> bool:
    """Whether a profile is for gray pictures; some have one for RGB. Format: ICC.1:2022, section
    7.2.6."""
    return profile[16:20] == b"GRAY"


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8] | None:
    """RGB pixels (height, width, 3) in sRGB; None where the profile is sRGB as far as one can see.

    Raises ``PyCMSError`` and ``OSError`` for a profile that can't be used.
    """
    transform = _visible_transform(profile)
    if transform is None:
        return None
    picture = Image.fromarray(pixels)
    ImageCms.applyTransform(picture, transform, inPlace=True)
    return np.asarray(picture)


def picture_to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A gray or CMYK picture in RGB by its profile. Raises as :func:`to_srgb` does."""
    converted = ImageCms.applyTransform(picture, _transform(profile, picture.mode))
    assert converted is not None
    return converted


@lru_cache(maxsize=_KEPT)
def _visible_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    transform = _transform(profile, "RGB")
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    samples = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    seen = np.asarray(ImageCms.applyTransform(Image.fromarray(samples), transform), np.int16)
    return None if np.abs(seen - samples).max() <= _INVISIBLE else transform


@lru_cache(maxsize=_KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        _open(profile), ImageCms.createProfile("sRGB"), mode, "RGB", _INTENT, _FLAGS
    )


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    if len(profile) > MAX_BYTES:
        raise OSError(f"a color profile of {len(profile)} bytes; the limit is {MAX_BYTES}")
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
