from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from preprocessing.decode import DecodeLimits, decode
from raylens.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from tests.pictures import encoded, gradient, png_header, random_pixels

LIMITS = DecodeLimits(max_bytes=10**6, max_pixels=10**6, min_side=4, max_side=2000)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 98})])
def test_each_format_gives_its_pixels(kind, options) -> None:
    pixels = gradient(40, 30)
    decoded, geometry = decode(encoded(pixels, kind, **options), LIMITS)
    assert decoded.shape == (30, 40, 3)
    assert np.abs(decoded.astype(int) - pixels).max() <= (6 if kind == "JPEG" else 0)
    assert geometry.original == (40, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_onto_white(mode) -> None:
    picture = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    picture.paste((10, 10, 10, 255), (0, 0, 4, 8))
    decoded, _ = decode(encoded(picture.convert(mode)), LIMITS)
    assert (decoded[:, :4] == 10).all()
    assert (decoded[:, 4:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_color_modes_become_rgb(mode) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    decoded, _ = decode(encoded(Image.new("RGB", (9, 7), "white").convert(mode), kind), LIMITS)
    assert decoded.shape == (7, 9, 3)
    assert (decoded >= 250).all()


def test_sixteen_bit_gray_keeps_its_levels() -> None:
    levels = np.linspace(0, 65535, 40).astype(np.uint16)[None].repeat(8, 0)
    decoded, _ = decode(encoded(Image.fromarray(levels)), LIMITS)
    assert np.abs(decoded[0, :, 0].astype(int) - levels[0] // 257).max() <= 1


def test_an_exif_block_that_cannot_be_written_again_is_no_reason_to_fail() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = encoded(gradient(40, 20), "JPEG", exif=exif).replace(b"maker\0", b"\xff\xfe\xff\xfe\xff\0")
    decoded, _ = decode(data, LIMITS)
    assert decoded.shape == (40, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(30, 20), exif=exif)
    decoded, _ = decode(data, LIMITS)
    assert np.array_equal(decoded, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_an_exif_orientation_turns_the_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turned clockwise to stand
    decoded, geometry = decode(encoded(gradient(40, 20), exif=exif), LIMITS)
    assert decoded.shape == (40, 20, 3)
    assert np.array_equal(decoded, np.rot90(gradient(40, 20), -1))
    assert geometry.original == (40, 20)
    assert geometry.processed == (20, 40)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", UnsupportedMedia, "empty"),
        (encoded(gradient(300, 300), "JPEG")[:300], InvalidRequest, "truncated or damaged"),
        (encoded(gradient(300, 300), "WEBP")[:14], InvalidRequest, "truncated or damaged"),
        (b"RIFF\x24\0\0\0WAVEfmt ", UnsupportedMedia, "RIFF"),
        (b"%PDF-1.7 something", UnsupportedMedia, "%PDF-1.7"),
        (encoded(gradient(10, 10), "BMP"), UnsupportedMedia, "JPEG, PNG or WEBP"),
        (encoded(gradient(300, 300), "JPEG")[:2000], InvalidRequest, "truncated"),
        (encoded(random_pixels(60, 60))[:4000], InvalidRequest, "truncated"),
        (encoded(gradient(1, 1)), InvalidRequest, "1×1 pixels; at least 4"),
        (encoded(gradient(3, 100)), InvalidRequest, "3×100"),
        (png_header(50_000, 50_000), PayloadTooLarge, "50000×50000 pixels; the limit is 1000000"),
        (encoded(gradient(2001, 5)), PayloadTooLarge, "the limit is 2000 pixels a side"),
        (bytes(10**6 + 1), PayloadTooLarge, "the limit is 1000000 bytes"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_what_was_found(data, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        decode(data, LIMITS)
    assert caught.value.field == "image"


@given(st.data())
def test_a_damaged_file_is_refused_or_decoded_but_never_breaks(data) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    damaged = bytearray(encoded(random_pixels(24, 24), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        pixels, _ = decode(bytes(damaged[:cut]), LIMITS)
    except (InvalidRequest, PayloadTooLarge, UnsupportedMedia):
        pass
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
