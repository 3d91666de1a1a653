from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageCms

from preprocessing.profile import name_of, to_srgb
from tests.profiles import DISPLAY_P3, SRGB, matrix_profile, rgb_to_srgb


def test_display_p3_becomes_srgb_by_the_formulas() -> None:
    # Within sRGB's own gamut: outside of it, clipping is a matter of taste.
    pixels = np.random.default_rng(0).integers(90, 170, (20, 20, 3)).astype(np.uint8)
    profile = matrix_profile(DISPLAY_P3, "Display P3")
    converted = to_srgb(pixels, profile)
    assert converted is not None
    assert np.abs(converted - rgb_to_srgb(pixels, DISPLAY_P3)).max() <= 2
    assert np.abs(converted.astype(int) - pixels).max() > 8
    assert name_of(profile) == "Display P3"


def test_srgb_itself_is_left_alone() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert (
        to_srgb(pixels, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()) is None
    )
    assert to_srgb(pixels, matrix_profile(SRGB, "nearly")) is not None  # its curve is another


def test_what_is_no_profile_raises() -> None:
    with pytest.raises((ImageCms.PyCMSError, OSError)):
        to_srgb(np.zeros((4, 4, 3), np.uint8), b"nonsense")
