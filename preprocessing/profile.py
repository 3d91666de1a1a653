"""Conversion of color profiles (ICC.1:2022) to sRGB with Little CMS."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
MAX_BYTES = 4 * 2**20
"""Maximum size of a profile."""
_CACHE_SIZE = 8
"""Profiles whose transforms are cached, together with the profiles themselves."""
_INVISIBLE = 2
"""Levels by which a profile may differ from sRGB and still count as sRGB."""


def description_of(profile: bytes) -> str:
    """Return the description inside the profile, or a placeholder if there is none."""
    try:
        return ImageCms.getProfileDescription(_open(profile)).strip()[:80]
    except (ImageCms.PyCMSError, OSError):
        return "a color profile"


def is_gray(profile: bytes) -> bool:
    """Whether a profile is for gray pictures (ICC.1:2022, section 7.2.6).

    Some gray pictures have an RGB profile.
    """
    return profile[16:20] == b"GRAY"


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8] | None:
    """Convert (height, width, 3) RGB pixels to sRGB.

    Returns None if the profile does not visibly differ from sRGB. Raises ``PyCMSError`` or
    ``OSError`` if the profile can't be used.
    """
    transform = _visible_transform(profile)
    if transform is None:
        return None
    picture = Image.fromarray(pixels)
    ImageCms.applyTransform(picture, transform, inPlace=True)
    return np.asarray(picture)


def picture_to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Convert a gray or CMYK picture to sRGB.

    Raises ``PyCMSError`` or ``OSError`` if the profile can't be used.
    """
    converted = ImageCms.applyTransform(picture, _transform(profile, picture.mode))
    assert converted is not None
    return converted


@lru_cache(maxsize=_CACHE_SIZE)
def _visible_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from RGB, or None if it changes no color visibly."""
    transform = _transform(profile, "RGB")
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    samples = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(samples), transform), np.int16)
    return None if np.abs(converted - samples).max() <= _INVISIBLE else transform


@lru_cache(maxsize=_CACHE_SIZE)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        _open(profile), ImageCms.createProfile("sRGB"), mode, "RGB", _INTENT, _FLAGS
    )


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    if len(profile) > MAX_BYTES:
        raise OSError(f"a color profile of {len(profile)} bytes; the limit is {MAX_BYTES}")
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
