"""What a file holds beside its picture is no reason to refuse the picture."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing.decode import decode
from preprocessing.header import PictureLimits, check_file
from preprocessing.png import MAX_CONTENT, clean_png
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from testing.pictures import encode_picture, gradient, random_pixels
from tests.profiles import cmyk_profile, gray_profile

LIMITS = PictureLimits(max_bytes=10**8, max_pixels=10**7, min_side=4, max_side=4000)
PIXELS = gradient(64, 48)
PNG = encode_picture(PIXELS, "PNG")
ZEROS = zlib.compress(bytes(MAX_CONTENT + 1), 9)
SAMSUNG = b"\0\0\1\x0a\x0e\0\0\0Image_UTC_Data1700000000000SEFHe\0\0\0SEFT"
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + b"mdat" * 800


def chunk(kind: bytes, content: bytes = b"", wrong: int = 0) -> bytes:
    checksum = zlib.crc32(kind + content) ^ wrong
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks: bytes, before_end: bytes = b"") -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:-12] + before_end + PNG[-12:]


EXTRAS = {
    "a bomb of text": (png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 10**8), 1))), "zTXt"),
    "large iTXt": (png(chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS)), "iTXt"),
    "large zTXt": (png(chunk(b"zTXt", b"k\0\0" + ZEROS)), "zTXt"),
    "large tEXt": (png(chunk(b"tEXt", b"k\0" + bytes(MAX_CONTENT))), "tEXt"),
    "large plain iTXt": (png(chunk(b"iTXt", b"k\0\0\0\0\0" + b"a" * MAX_CONTENT)), "iTXt"),
    "large profile": (png(chunk(b"iCCP", b"k\0\0" + ZEROS)), "iCCP"),
    "text after the pixels": (png(before_end=chunk(b"zTXt", b"k\0\0" + ZEROS)), "zTXt"),
    "many texts": (png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6)))] * 9), "zTXt"),
    "a bomb behind as much text as is read": (
        png(*[chunk(b"tEXt", b"k" * MAX_CONTENT)] * 4, chunk(b"zTXt", b"k\0\0" + ZEROS)),
        "zTXt",
    ),
    "wrong text": (png(chunk(b"tEXt", b"k\0v", wrong=1)), "tEXt"),
    "wrong time": (png(chunk(b"tIME", bytes(7), wrong=1)), "tIME"),
    "wrong gamma": (png(chunk(b"gAMA", bytes(4), wrong=9)), "gAMA"),
    "short size": (png(chunk(b"pHYs", bytes(2))), "pHYs"),
    "short color": (png(chunk(b"cHRM", bytes(4))), "cHRM"),
    "short rendering": (png(chunk(b"sRGB")), "sRGB"),
    "short transparency": (png(chunk(b"tRNS", bytes(2))), "tRNS"),
    "wrong unknown chunk": (png(chunk(b"raND", bytes(40), wrong=9)), "raND"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_png_is_decoded_without_its_extras(name) -> None:
    data, kind = EXTRAS[name]
    decoded = decode(data, LIMITS)
    assert np.array_equal(decoded.pixels, PIXELS)
    assert len(decoded.warnings) == 1
    assert decoded.warnings[0].startswith(f"decode: the chunk {kind} was ignored: ")
    check_file(data, LIMITS, "image")


def test_a_usual_png_is_not_copied() -> None:
    usual = png(chunk(b"tEXt", b"Software\0x"), chunk(b"zTXt", b"k\0\0" + zlib.compress(b"text")))
    for data in (PNG, usual, PNG + b"junk behind it", PNG[:-20]):
        cleaned, warnings = clean_png(data)
        assert cleaned is data
        assert warnings == ()


@pytest.mark.parametrize("cut", [12, 7, 1])
def test_a_png_whose_pixels_are_complete_needs_no_end(cut: int) -> None:
    for data in (PNG[:-cut], PNG[:-4] + b"\0\0\0\0"):
        decoded = decode(data, LIMITS)
        assert decoded.warnings == ("decode: the end of the PNG is missing or damaged",)
        assert np.array_equal(decoded.pixels, PIXELS)


def test_a_png_whose_pixels_are_cut_off_is_refused() -> None:
    start = PNG.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", PNG, start)
    shorter = chunk(b"IDAT", PNG[start + 8 : start + 8 + length - 20])
    for data in (PNG[:-20], PNG[: start + 6], PNG[:start] + shorter, PNG[:start]):
        with pytest.raises(InvalidRequest, match=f"the PNG of {len(data)} bytes is truncated"):
            decode(data, LIMITS)


def test_the_orientation_in_a_small_text_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    rotated = png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        chunk(b"zTXt", b"k\0\0" + ZEROS),
    )
    decoded = decode(rotated, LIMITS)
    assert decoded.pixels.shape == (64, 48, 3)
    assert len(decoded.warnings) == 1


def test_a_wrong_critical_chunk_is_damage() -> None:
    broken = bytearray(PNG)
    broken[-14] ^= 1
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        decode(bytes(broken), LIMITS)


def test_too_many_chunks_are_refused_at_once() -> None:
    with pytest.raises(PayloadTooLarge, match="too many parts"):
        decode(png(chunk(b"tEXt", b"k\0v") * 60_000), LIMITS)


TRAILERS = {
    "none": b"",
    "Samsung's blocks": SAMSUNG,
    "Samsung's blocks with an end marker": SAMSUNG + b"\xff\xd9",
    "a video": VIDEO,
    "a video of random bytes": VIDEO + os.urandom(5000),
    "text": b"a trailer of plain text that says nothing",
    "zeros": bytes(50),
    "a second picture": encode_picture(gradient(9, 9), "JPEG"),
}


VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 4},
    "restart markers, progressive": {"restart_marker_rows": 1, "progressive": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TRAILERS)
def test_a_jpeg_may_lack_its_end_marker(name, variant) -> None:
    for pixels in (gradient(64, 64), random_pixels(200, 120), random_pixels(200, 120)[..., 0]):
        data = encode_picture(pixels, "JPEG", **VARIANTS[variant])
        decoded = decode(data[:-2] + TRAILERS[name], LIMITS)
        assert np.array_equal(decoded.pixels, decode(data, LIMITS).pixels)
        assert len(decoded.warnings) == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TRAILERS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_was_cut_off_is_damaged(name, variant, share) -> None:
    data = encode_picture(random_pixels(200, 120), "JPEG", **VARIANTS[variant])
    cut = data[: int(len(data) * share)]
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        decode(cut + TRAILERS[name], LIMITS)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TRAILERS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("CMYK", {}),
        ("L", {"icc_profile": gray_profile(2.2)}),
        ("CMYK", {"icc_profile": cmyk_profile()}),
    ],
    ids=["CMYK", "gray with a profile", "CMYK with a profile"],
)
def test_a_jpeg_of_unusual_colors_may_lack_its_end_marker(name, variant, mode, options) -> None:
    picture = Image.fromarray(random_pixels(200, 120)).convert(mode)
    data = encode_picture(picture, "JPEG", **options, **VARIANTS[variant])
    decoded = decode(data[:-2] + TRAILERS[name], LIMITS)
    assert np.array_equal(decoded.pixels, decode(data, LIMITS).pixels)
    assert len(decoded.warnings) == 1
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        decode(data[: len(data) // 2] + TRAILERS[name], LIMITS)
