"""Checks of a file before it is queued: what decoding would say of its header, in its words."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.decode import decode
from preprocessing.header import PictureLimits, check_file
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError, UnsupportedMedia
from testing.pictures import encode_picture, gradient, png_header, random_pixels

LIMITS = PictureLimits(max_bytes=10**6, max_pixels=10**6, min_side=4, max_side=2000)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
FIELD = "inputs[3].image_url"


@pytest.mark.parametrize("file_format", [*FORMATS, "MPO"])
def test_each_supported_format_is_accepted(file_format: str) -> None:
    check_file(encode_picture(gradient(60, 44), file_format), LIMITS, FIELD)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_a_pixel_mode_that_can_be_decoded_is_accepted(mode: str) -> None:
    check_file(encode_picture(Image.new(mode, (20, 20)), "PNG"), LIMITS, FIELD)


def tiff_header(*tags: tuple[int, int, int]) -> bytes:
    """A TIFF of 100×100 pixels with more (tag, type, value)."""
    all_tags = [
        (256, 4, 100), (257, 4, 100), (258, 4, 8), (259, 4, 5), (262, 4, 1), (277, 4, 1), *tags,
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in all_tags)
    return b"II*\0" + struct.pack("<IH", 8, len(all_tags)) + entries + bytes(80)


def jpeg_of_scans() -> bytes:
    data = encode_picture(gradient(900, 900), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 50 + data[-2:]


REFUSED = {
    "an empty file": (b"", UnsupportedMedia, "the file is empty (0 bytes)"),
    "text": (b"hello", UnsupportedMedia, "not a known picture format"),
    "a PDF document": (b"%PDF-1.7 something", UnsupportedMedia, "this is a PDF document"),
    "random bytes": (random_pixels(100, 100).tobytes(), UnsupportedMedia, "not a known picture"),
    "a truncated header": (
        encode_picture(gradient(60, 44), "JPEG")[:30],
        InvalidRequest,
        "the JPEG of 30 bytes is truncated or damaged",
    ),
    "a small picture": (encode_picture(gradient(3, 100)), InvalidRequest, "3×100 pixels; expected"),
    "many pixels": (png_header(1001, 1000), PayloadTooLarge, "the limit is 1000000 pixels"),
    "a long side": (encode_picture(gradient(2001, 5)), PayloadTooLarge, "2000 pixels per side"),
    "a large file": (bytes(10**6 + 1), PayloadTooLarge, "the limit is 1000000 bytes"),
    "many scans": (jpeg_of_scans(), PayloadTooLarge, "scans; the limit is 19 scans"),
    "large tiles": (
        tiff_header((322, 4, 40_000), (323, 4, 40_000), (324, 4, 8), (325, 4, 64)),
        PayloadTooLarge,
        "tiles of 1600000000 pixels",
    ),
    "a tile size in words": (
        tiff_header((322, 2, 0x35), (323, 4, 2**31), (324, 4, 8), (325, 4, 64)),
        InvalidRequest,
        "the size of its tiles is not a number",
    ),
    "a pixel mode": (
        encode_picture(Image.new("F", (20, 20)), "TIFF"),
        UnsupportedMedia,
        "pixel mode 'F' is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_field_and_is_what_decoding_says(name: str) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error) as caught:
        check_file(data, LIMITS, FIELD)
    assert caught.value.field == FIELD
    assert caught.value.message.startswith(f"{FIELD}: ")
    assert message in caught.value.message
    with pytest.raises(error) as decoding:
        decode(data, LIMITS)
    assert str(decoding.value.about(FIELD)) == caught.value.message
    assert (decoding.value.limit, decoding.value.actual) == (
        caught.value.limit,
        caught.value.actual,
    )


def test_a_header_that_would_take_long_to_read_is_refused() -> None:
    picture = encode_picture(gradient(60, 44), "JPEG")
    empty_segments = b"\xff\xe0\0\2" * 10**5
    file = picture[:2] + empty_segments + picture[2:]
    message = r"JPEG of .* bytes has too many parts"
    with pytest.raises(PayloadTooLarge, match=message) as caught:
        check_file(file, LIMITS, FIELD)
    assert caught.value.field == FIELD
    with pytest.raises(PayloadTooLarge, match=message):
        decode(file, LIMITS)


def test_damage_in_the_pixels_is_left_to_decoding() -> None:
    data = encode_picture(random_pixels(80, 60))
    check_file(data[: len(data) // 2], LIMITS, FIELD)


@given(st.data())
def test_decoding_refuses_a_damaged_file_in_the_same_words(data: st.DataObject) -> None:
    damaged = bytearray(encode_picture(random_pixels(24, 24), data.draw(st.sampled_from(FORMATS))))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    refused = refusal(lambda: check_file(file, LIMITS, "image"))
    if refused:
        assert refusal(lambda: decode(file, LIMITS)) == refused


def refusal(check: Callable[[], object]) -> str | None:
    try:
        check()
    except RaylensError as error:
        return f"{error.code}: {error.message}"
    return None


def test_the_check_imports_neither_numpy_nor_opencv() -> None:
    script = (
        "import sys; from preprocessing.header import PictureLimits, check_file;"
        "check_file(sys.stdin.buffer.read(), PictureLimits(10**6, 10**6, 4, 2000), 'image');"
        "print(*{'numpy', 'cv2', 'simplejpeg', 'torch', 'ray'} & set(sys.modules))"
    )
    for file_format in FORMATS:
        picture = encode_picture(gradient(60, 44), file_format)
        process = subprocess.run(
            [sys.executable, "-c", script], input=picture, capture_output=True, check=True
        )
        assert process.stdout.decode().strip() == ""
