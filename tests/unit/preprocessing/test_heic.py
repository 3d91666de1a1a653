"""HEIC, which iPhones write, with and without the extra that reads it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from preprocessing import header
from preprocessing.decode import decode
from preprocessing.header import PictureLimits, check_file
from raylens.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from testing.pictures import encode_picture, gradient

LIMITS = PictureLimits(max_bytes=10**7, max_pixels=10**6, min_side=4, max_side=4000)
PIXELS = gradient(64, 48)


def heic(orientation: int = 1, mode: str = "RGB") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "HEIF", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_shown_as_pillow_shows_it(orientation) -> None:
    data = heic(orientation)
    decoded = decode(data, LIMITS)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decoded.pixels, expected)
    assert decoded.geometry.original == expected.shape[1::-1]
    assert decoded.geometry.point(0.25, 0.75) == (0.25, 0.75)
    assert decoded.description.startswith("HEIC, RGB")
    check_file(data, LIMITS, "image")


def test_transparency_is_composited() -> None:
    assert np.abs(decode(heic(mode="RGBA"), LIMITS).pixels.astype(int) - PIXELS).mean() < 5


def test_limits_hold() -> None:
    small = PictureLimits(max_bytes=10**7, max_pixels=1000, min_side=4, max_side=4000)
    with pytest.raises(PayloadTooLarge, match="64×48 pixels; the limit is 1000"):
        decode(heic(), small)
    with pytest.raises(InvalidRequest, match=r"the HEIC of \d+ bytes is truncated or damaged"):
        decode(heic()[:-200], LIMITS)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "SUPPORTED", ("JPEG", "PNG"))
    monkeypatch.setattr(header, "_PLUGINS", ("JPEG", "PNG"))
    with pytest.raises(UnsupportedMedia, match=r"this is HEIC.* extra heic \(pillow-heif\)"):
        decode(heic(), LIMITS)


def test_avif_is_not_taken_for_heic() -> None:
    assert decode(encode_picture(PIXELS, "AVIF"), LIMITS).description.startswith("AVIF")
