from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageCms

from preprocessing.profile import description_of, to_srgb
from tests.profiles import DISPLAY_P3, SRGB, matrix_profile, rgb_to_srgb


def test_display_p3_is_converted_by_the_formulas() -> None:
    # Colors inside the sRGB gamut only: for others, no formula defines the clipping.
    pixels = np.random.default_rng(0).integers(90, 170, (20, 20, 3)).astype(np.uint8)
    profile = matrix_profile(DISPLAY_P3, "Display P3")
    converted = to_srgb(pixels, profile)
    assert converted is not None
    assert np.abs(converted - rgb_to_srgb(pixels, DISPLAY_P3)).max() <= 2
    assert np.abs(converted.astype(int) - pixels).max() > 8
    assert description_of(profile) == "Display P3"


def test_an_srgb_profile_needs_no_conversion() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_srgb(pixels, srgb) is None
    other_curve = matrix_profile(SRGB, "nearly")
    assert to_srgb(pixels, other_curve) is not None


def test_an_invalid_profile_raises() -> None:
    with pytest.raises((ImageCms.PyCMSError, OSError)):
        to_srgb(np.zeros((4, 4, 3), np.uint8), b"nonsense")
