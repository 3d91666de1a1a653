"""Every format compared to a second decoder: OpenCV, or the formulas if OpenCV has none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from preprocessing.decode import decode
from preprocessing.header import PictureLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from testing.pictures import encode_picture, gradient, png_header, random_pixels
from tests.profiles import DISPLAY_P3, INKS, cmyk_profile, gray_profile, lab_to_srgb, matrix_profile

LIMITS = PictureLimits(max_bytes=10**6, max_pixels=10**6, min_side=4, max_side=2000)
FORMATS: dict[str, tuple[str, dict[str, Any], int]] = {
    "PNG": ("PNG", {}, 0),
    "JPEG": ("JPEG", {"quality": 92}, 3),
    "progressive JPEG": ("JPEG", {"quality": 92, "progressive": True, "subsampling": 2}, 3),
    "4:4:4 JPEG": ("JPEG", {"quality": 98, "subsampling": 0}, 3),
    "lossless WebP": ("WEBP", {"lossless": True}, 0),
    "WebP": ("WEBP", {"quality": 90}, 3),
    "GIF": ("GIF", {}, 0),
    "BMP": ("BMP", {}, 0),
    "TIFF": ("TIFF", {}, 0),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "deflated TIFF": ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    "AVIF": ("AVIF", {"quality": 90}, 3),
}
"""Pillow's name of the format, its options, and the levels by which two decoders may differ."""


def picture() -> Image.Image:
    """A smooth picture with a sharp corner."""
    pixels = gradient(60, 44)
    pixels[:10, :14] = (200, 30, 90)
    return Image.fromarray(pixels)


def second_decoder(data: bytes) -> np.ndarray[Any, Any]:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded[..., ::-1])


def exif_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_matches_a_second_decoder(name) -> None:
    file_format, options, tolerance = FORMATS[name]
    data = encode_picture(picture(), file_format, **options)
    decoded = decode(data, LIMITS)
    assert np.abs(decoded.pixels.astype(int) - second_decoder(data)).max() <= tolerance
    mean_tolerance = 8 if file_format == "GIF" else 3
    assert np.abs(decoded.pixels.astype(int) - np.asarray(picture())).mean() <= mean_tolerance
    assert decoded.geometry.original == (60, 44)
    assert decoded.profile is None
    assert decoded.warnings == ()
    assert decoded.description.startswith(file_format.replace("WEBP", "WebP"))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_grayscale_matches_a_second_decoder(file_format) -> None:
    data = encode_picture(picture().convert("L"), file_format)
    assert np.abs(decode(data, LIMITS).pixels.astype(int) - second_decoder(data)).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF"])
def test_palettes_and_single_bits_match_a_second_decoder(file_format) -> None:
    for mode in ("P", "1"):
        data = encode_picture(picture().convert(mode), file_format)
        assert np.array_equal(decode(data, LIMITS).pixels, second_decoder(data)), mode


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "AVIF", "TIFF", "PNG"])
def test_only_the_first_frame_is_decoded(file_format) -> None:
    first = Image.new("RGB", (20, 12), (250, 10, 10))
    second = Image.new("RGB", (20, 12), (10, 10, 250))
    decoded = decode(
        encode_picture(first, file_format, save_all=True, append_images=[second]), LIMITS
    )
    assert decoded.pixels.shape == (12, 20, 3)
    assert np.abs(decoded.pixels.astype(int) - (250, 10, 10)).max() <= 6


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("WEBP", "RGBA"),
        ("TIFF", "RGBA"),
        ("TIFF", "LA"),
        ("AVIF", "RGBA"),
        ("GIF", "RGBA"),
    ],
)
def test_transparency_is_composited_onto_white(file_format, mode) -> None:
    layer = Image.new("RGBA", (16, 16), (10, 10, 10, 0))
    layer.paste((10, 10, 10, 255), (0, 0, 8, 16))
    pixels = decode(encode_picture(layer.convert(mode), file_format), LIMITS).pixels
    assert np.abs(pixels[:, :6].astype(int) - 10).max() <= 4
    assert pixels[:, 10:].min() >= 250


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_of_gray_keep_their_levels(file_format) -> None:
    levels = np.linspace(0, 65535, 40).astype(np.uint16)[None].repeat(8, 0)
    data = encode_picture(Image.fromarray(levels), file_format)
    assert np.abs(decode(data, LIMITS).pixels[0, :, 0] - levels[0] / 257).max() <= 0.51


@pytest.mark.parametrize(("bits", "level"), [(1, 1), (2, 2), (4, 8), (8, 77), (16, 40_000)])
def test_the_transparent_level_of_a_gray_png_is_white_at_any_depth(bits, level) -> None:
    pixel = (level << max(0, 8 - bits)).to_bytes(2 if bits == 16 else 1, "big")
    row = (b"\0" + pixel * 4)[: 1 + max(1, 4 * bits // 8)]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", level)),
        (b"IDAT", zlib.compress(row * 4)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for chunk_type, content in chunks:
        checksum = zlib.crc32(chunk_type + content)
        data += struct.pack(">I", len(content)) + chunk_type + content
        data += struct.pack(">I", checksum)
    assert (decode(data, LIMITS).pixels[:, 0] == 255).all()


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bits_per_channel_match_opencv(extension) -> None:
    levels = np.random.default_rng(1).integers(0, 65536, (12, 16, 3), dtype=np.uint16)
    data = cv2.imencode(extension, levels)[1].tobytes()
    assert np.abs(decode(data, LIMITS).pixels[..., ::-1] - levels / 257).max() <= 1


def test_a_tiff_tag_makes_zero_white() -> None:
    levels = np.linspace(0, 65535, 40).astype(np.uint16)[None].repeat(8, 0)
    pixels = decode(
        encode_picture(Image.fromarray(levels), "TIFF", tiffinfo={262: 0}), LIMITS
    ).pixels
    assert pixels[0, 0, 0] > pixels[0, -1, 0]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_other_pixel_modes_are_refused_by_name(mode) -> None:
    with pytest.raises(
        UnsupportedMedia, match=f"pixel mode '{mode}' is not supported; expected gray of 1 to 16"
    ):
        decode(encode_picture(Image.new(mode, (20, 20)), "TIFF"), LIMITS)


def test_cmyk_matches_a_second_decoder() -> None:
    data = encode_picture(picture().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data, LIMITS).pixels.astype(int) - second_decoder(data)).max() <= 4


@pytest.mark.parametrize(
    ("ink", "levels"),
    [("white", (0, 0, 0, 0)), ("cyan", (255, 0, 0, 0)), ("yellow", (0, 0, 255, 0))],
)
def test_cmyk_with_a_profile_has_the_colors_of_its_inks(ink, levels) -> None:
    profile = cmyk_profile()
    picture = Image.new("CMYK", (16, 16), levels)
    for file_format in ("TIFF", "JPEG"):
        decoded = decode(encode_picture(picture, file_format, icc_profile=profile), LIMITS)
        assert np.abs(decoded.pixels[8, 8] - lab_to_srgb(INKS[ink])).max() <= 3
        assert decoded.profile is None


@pytest.mark.parametrize(("mode", "level"), [("L", 128), ("LA", (128, 255)), ("I;16", 128 * 257)])
def test_gray_with_a_profile_follows_its_curve(mode, level) -> None:
    data = encode_picture(Image.new(mode, (16, 16), level), "PNG", icc_profile=gray_profile(1.0))
    assert np.abs(decode(data, LIMITS).pixels.astype(int) - 188).max() <= 2  # half of the light


def test_a_gray_jpeg_with_a_gray_profile_is_converted() -> None:
    data = encode_picture(Image.new("L", (16, 16), 128), "JPEG", icc_profile=gray_profile(1.0))
    decoded = decode(data, LIMITS)
    assert np.abs(decoded.pixels.astype(int) - 188).max() <= 2
    assert decoded.profile is None


def test_a_gray_jpeg_with_a_color_profile_passes_the_profile_on() -> None:
    profile = matrix_profile(DISPLAY_P3, "P3")
    data = encode_picture(Image.new("L", (16, 16), 128), "JPEG", icc_profile=profile)
    decoded = decode(data, LIMITS)
    assert np.abs(decoded.pixels.astype(int) - 128).max() <= 1
    assert decoded.profile == profile
    assert decoded.warnings == ()


def test_an_unusable_profile_is_skipped_with_a_warning() -> None:
    data = encode_picture(
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF", icc_profile=b"not a profile at all"
    )
    decoded = decode(data, LIMITS)
    assert decoded.warnings[0].startswith("color_profile: skipped")
    assert np.abs(decoded.pixels.astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_an_rgb_profile_is_passed_on(file_format) -> None:
    profile = matrix_profile(DISPLAY_P3, "Display P3")
    assert (
        decode(encode_picture(picture(), file_format, icc_profile=profile), LIMITS).profile
        == profile
    )


def test_an_exif_block_that_cannot_be_rewritten_is_accepted() -> None:
    exif = exif_orientation(6)
    exif[0x010F] = "maker"
    data = encode_picture(gradient(40, 20), "JPEG", exif=exif).replace(
        b"maker\0", b"\xff\xfe\xff\xfe\xff\0"
    )
    assert decode(data, LIMITS).pixels.shape == (40, 20, 3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(file_format, orientation) -> None:
    """The EXIF standard names the corner of the stored picture that is the upright top left."""
    pixels = np.full((24, 36, 3), 120, np.uint8)
    corners = {
        1: (0, 0),
        2: (0, -1),
        3: (-1, -1),
        4: (-1, 0),
        5: (0, 0),
        6: (-1, 0),
        7: (-1, -1),
        8: (0, -1),
    }
    row, column = corners[orientation]
    rows = slice(0, 8) if row == 0 else slice(-8, None)
    columns = slice(0, 8) if column == 0 else slice(-8, None)
    pixels[rows, columns] = 255
    options = {"quality": 95} if file_format == "AVIF" else {}
    data = encode_picture(pixels, file_format, exif=exif_orientation(orientation), **options)
    decoded = decode(data, LIMITS)
    assert decoded.pixels.shape == ((24, 36, 3) if orientation < 5 else (36, 24, 3))
    assert decoded.pixels[1:7, 1:7].min() > 220
    assert decoded.pixels[10:, 10:].max() < 150
    assert decoded.stored_size == (36, 24)
    assert decoded.geometry.original == ((36, 24) if orientation < 5 else (24, 36))
    assert decoded.geometry.point(0.05, 0.1) == pytest.approx((0.05, 0.1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_matches_pillow_and_opencv(orientation) -> None:
    data = encode_picture(gradient(30, 20), "PNG", exif=exif_orientation(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data, LIMITS).pixels, expected)
    data = encode_picture(gradient(32, 16), "JPEG", exif=exif_orientation(orientation), quality=95)
    assert np.abs(decode(data, LIMITS).pixels.astype(int) - second_decoder(data)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (643, 485), (999, 70)])
def test_a_jpeg_decoded_at_reduced_scale_maps_back(size, orientation) -> None:
    # The stored picture is such that the upright one is a gradient.
    turned = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, 1)
    shown = size if orientation < 5 else size[::-1]
    source = encode_picture(gradient(*shown), "PNG", exif=exif_orientation(turned))
    stored_pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(source))))
    exif = exif_orientation(orientation)
    data = encode_picture(stored_pixels, "JPEG", quality=95, exif=exif)
    for share, divisor in ((0.5, 2), (0.3, 2), (0.25, 4), (0.1, 8), (0.01, 8), (0.9, 1)):

        def required_size(size: tuple[int, int], share: float = share) -> tuple[int, int]:
            return round(size[0] * share), round(size[1] * share)

        decoded = decode(data, LIMITS, required_size)
        height, width = decoded.pixels.shape[:2]
        stored = (width, height) if orientation < 5 else (height, width)
        assert stored == (-(-size[0] // divisor), -(-size[1] // divisor))
        tolerance = 255 * divisor / min(size) + 3
        for row, column in ((0, 0), (height // 2, width // 3), (height - 1, width // 2)):
            x, y = decoded.geometry.point((column + 0.5) / width, (row + 0.5) / height)
            # Red encodes the original's x, green its y.
            expected = np.array([x, y]) * 255
            assert np.abs(decoded.pixels[row, column, :2] - expected).max() <= tolerance


@pytest.mark.parametrize(
    "trailer", [b"", b"SEFT\xff\xd9 and more", encode_picture(gradient(9, 9), "JPEG")]
)
def test_padding_before_the_end_of_a_jpeg_is_accepted_with_a_warning(trailer) -> None:
    data = encode_picture(gradient(64, 64), "JPEG")
    padded = decode(data[:-2] + bytes(37) + data[-2:] + trailer, LIMITS)
    assert np.array_equal(padded.pixels, decode(data, LIMITS).pixels)
    assert "extraneous bytes" in padded.warnings[0]


def test_bytes_that_replace_pixels_are_not_padding() -> None:
    data = encode_picture(gradient(64, 64), "JPEG")
    with pytest.raises(InvalidRequest, match="extraneous bytes"):
        decode(data[:-2] + b"\x13\x57\x9b\xdf" + data[-2:], LIMITS)
    noise = encode_picture(random_pixels(200, 200), "JPEG")
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        decode(noise[: len(noise) // 2] + bytes(len(noise) // 2) + b"\xff\xd9", LIMITS)


def test_data_after_a_jpeg_is_ignored() -> None:
    data = encode_picture(gradient(900, 900), "JPEG", progressive=True)
    noise = np.random.default_rng(0).integers(0, 256, 900_000, dtype=np.uint8).tobytes()
    trailer = noise + b"\xff\xda" * 40
    assert np.array_equal(decode(data + trailer, LIMITS).pixels, decode(data, LIMITS).pixels)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("L", {}), ("CMYK", {}), ("L", {"icc_profile": gray_profile(2.2)})],
    ids=["RGB", "L", "CMYK", "L with a profile"],
)
def test_a_jpeg_of_any_mode_with_missing_data_is_refused(mode, options) -> None:
    picture = Image.fromarray(random_pixels(200, 200)).convert(mode)
    data = encode_picture(picture, "JPEG", **options)
    start = data.rindex(b"\xff\xda") + 2000
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        decode(data[:start] + data[start + 3000 :], LIMITS)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", UnsupportedMedia, "empty"),
        (encode_picture(gradient(300, 300), "JPEG")[:300], InvalidRequest, "truncated or damaged"),
        (encode_picture(gradient(300, 300), "WEBP")[:14], InvalidRequest, "truncated or damaged"),
        (b"RIFF\x24\0\0\0WAVEfmt ", UnsupportedMedia, "this is a WAVE sound"),
        (
            b"%PDF-1.7 something",
            UnsupportedMedia,
            "this is a PDF document, 18 bytes that begin with b'%PDF-1.7'",
        ),
        (b"<?xml version='1.0'?>\n<svg xmlns=''/>", UnsupportedMedia, "an SVG drawing"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1", InvalidRequest, "the HEIC of 20 bytes is truncated"),
        (
            b"hello",
            UnsupportedMedia,
            "not a known picture format.*expected JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC",
        ),
        (encode_picture(gradient(300, 300), "JPEG")[:2000], InvalidRequest, "truncated"),
        (
            encode_picture(random_pixels(60, 60))[:4000],
            InvalidRequest,
            "the PNG of 4000 bytes is truncated",
        ),
        (encode_picture(gradient(1, 1)), InvalidRequest, "1×1 pixels; expected at least 4"),
        (encode_picture(gradient(3, 100)), InvalidRequest, "3×100"),
        (png_header(50_000, 50_000), PayloadTooLarge, "50000×50000 pixels; the limit is 1000000"),
        (encode_picture(gradient(2001, 5)), PayloadTooLarge, "the limit is 2000 pixels per side"),
        (bytes(10**6 + 1), PayloadTooLarge, "the limit is 1000000 bytes"),
    ],
)
def test_an_undecodable_file_is_refused_with_its_actual_format(data, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        decode(data, LIMITS)
    assert caught.value.field == "image"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_file_is_refused(file_format) -> None:
    data = encode_picture(random_pixels(80, 60), file_format)
    for share in (0.3, 0.5, 0.9):
        with pytest.raises(InvalidRequest, match="truncated or damaged"):
            decode(data[: int(len(data) * share)], LIMITS)


def test_a_jpeg_with_too_many_scans_is_refused_before_it_is_decoded() -> None:
    data = encode_picture(gradient(900, 900), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:-2] + scan * 50 + data[-2:]
    with pytest.raises(
        PayloadTooLarge, match=r"900×900 pixels in \d+ scans; the limit is 19 scans"
    ):
        decode(bomb, LIMITS)


def test_a_tiff_with_huge_tiles_is_refused_before_it_is_decoded() -> None:
    tags = [
        (256, 100), (257, 100), (258, 8), (259, 5), (262, 1), (277, 1), (322, 40_000),
        (323, 40_000), (324, 8), (325, 64),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(80)
    with pytest.raises(PayloadTooLarge, match="tiles of 1600000000 pixels"):
        decode(data, LIMITS)


def test_a_tiff_with_a_tag_of_the_wrong_type_is_refused() -> None:
    tags = [
        (256, 4, 20), (257, 4, 20), (258, 4, 8), (259, 4, 1), (262, 4, 1), (273, 4, 200),
        (277, 4, 1), (278, 4, 20), (279, 4, 400), (322, 2, 0x35),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, field_type, field_type // 2, value)
        for tag, field_type, value in tags
    )
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(600)
    with pytest.raises(InvalidRequest, match=r"the TIFF of .* is truncated or damaged"):
        decode(data, LIMITS)


def test_an_unsupported_tiff_is_refused_with_the_reason() -> None:
    floats = cv2.imencode(".tiff", np.zeros((20, 20, 3), np.float32))[1].tobytes()
    with pytest.raises(InvalidRequest, match="or a variant that is not supported"):
        decode(floats, LIMITS)


def test_a_huge_profile_is_skipped() -> None:
    profile = cmyk_profile() + bytes(5 * 2**20)
    limits = PictureLimits(10**8, 10**6, 4, 2000)
    decoded = decode(
        encode_picture(Image.new("CMYK", (16, 16)), "TIFF", icc_profile=profile), limits
    )
    assert "the limit is 4194304" in decoded.warnings[0]


@given(st.data())
def test_a_damaged_file_is_refused_or_decoded_but_never_crashes(data) -> None:
    file_format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]))
    damaged = bytearray(encode_picture(random_pixels(24, 24), file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(damaged)))
    try:
        pixels = decode(bytes(damaged[:length]), LIMITS).pixels
    except (InvalidRequest, PayloadTooLarge, UnsupportedMedia):
        pass
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
