"""Files that keep Pillow busy for seconds to minutes at 20 MB are refused; usual ones are not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from preprocessing.effort import is_laborious
from testing.pictures import encode_picture, gradient, random_pixels
from tests.profiles import cmyk_profile

PICTURE = gradient(64, 48)
JPEG = encode_picture(PICTURE, "JPEG")
PNG = encode_picture(PICTURE, "PNG")


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def jpeg(segments: bytes) -> bytes:
    return JPEG[:2] + segments + JPEG[2:]


def png(chunks: bytes) -> bytes:
    return PNG[:33] + chunks + PNG[33:]


def gif(blocks: bytes) -> bytes:
    frame = struct.pack("<4H", 0, 0, 8000, 8000)
    return b"GIF89a" + bytes(7) + blocks + b"," + frame + b"\0\x08\2\x44\1\0;"


def tiff(tags: list[tuple[int, int, int]], is_big: bool = False) -> bytes:
    """A directory of (tag, type, number of values) before 1 MB of zeros."""
    if is_big:
        head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(tags))
        entries = b"".join(struct.pack("<HHQQ", *tag, 4096) for tag in tags)
    else:
        head = b"II*\0" + struct.pack("<IH", 8, len(tags))
        entries = b"".join(struct.pack("<HHII", *tag, 4096) for tag in tags)
    return head + entries + bytes(2**20)


def avif(*boxes: bytes) -> bytes:
    return box(b"ftyp", b"avif\0\0\0\0") + box(b"meta", bytes(4) + b"".join(boxes))


def avif_with_exif(length: int) -> bytes:
    entry = box(b"infe", struct.pack(">4xHH4sx", 2, 0, b"Exif"))
    location = struct.pack(">4xBBH HHHII", 0x44, 0, 1, 2, 0, 1, 0, length)
    return avif(box(b"iinf", struct.pack(">4xH", 1) + entry), box(b"iloc", location))


MEGABYTE_OF_ZEROS = zlib.compress(bytes(2**20 - 1), 9)
PHOTOSHOP_BLOCKS = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000
LABORIOUS = {
    "JPEG of empty segments": jpeg(segment(0xE0, b"") * 10**5),
    "JPEG of markers": jpeg(b"\xff\xd8" * 10**5),
    "JPEG with filler before a marker": jpeg(b"\xff" * 10**6),
    "JPEG of junk only": b"\xff\xd8\xff\xd8" + bytes(10**6),
    "JPEG of EXIF fragments": jpeg(segment(0xE1, b"Exif\0\0II*\0") * 10**5),
    "JPEG with megabytes of EXIF": jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 20),
    "JPEG of quantization tables": jpeg(segment(0xDB, b"\1" * 65_000) * 50),
    "JPEG of frame headers": jpeg(segment(0xC0, bytes(65_000)) * 50),
    "JPEG of Photoshop blocks": jpeg(segment(0xED, PHOTOSHOP_BLOCKS) * 60),
    "PNG of empty chunks": png(chunk(b"prVt") * 10**5),
    "PNG of compressed profiles": png(chunk(b"iCCP", b"x\0\0" + MEGABYTE_OF_ZEROS) * 100),
    "PNG of compressed texts": png(chunk(b"zTXt", b"\0\0" + MEGABYTE_OF_ZEROS) * 100),
    "PNG of compressed Unicode": png(chunk(b"iTXt", b"x\0\1\0\0\0" + MEGABYTE_OF_ZEROS) * 100),
    "TIFF of tags": tiff([(60_000, 2, 1)] * 65_535),
    "BigTIFF of tags": tiff([(60_000, 2, 1)] * 10**5, is_big=True),
    "TIFF of strips": tiff([(273, 4, 10**6)]),
    "TIFF of tiles": tiff([(324, 4, 10**6)]),
    "TIFF of fractions": tiff([(282, 5, 10**6)]),
    "TIFF of bit depths": tiff([(258, 3, 10**6)]),
    "GIF of comments": gif(b"!\xfe\0" * 10**6),
    "GIF of sub-blocks": gif(b"!\xf0" + b"\1x" * 10**6 + b"\0"),
    "GIF of sub-blocks after an empty one": gif(b"!\xf0\0" + b"\1x" * 10**6 + b"\0"),
    "GIF of sub-blocks after an empty loop": gif(
        b"!\xff\x0bNETSCAPE2.0\0" + b"\1x" * 10**6 + b"\0"
    ),
    "GIF with a large frame to dispose of": gif(b"!\xf9\4\x08\0\0\0\0"),
    "AVIF of boxes": avif(box(b"free", b"") * 10**6),
    "AVIF of items": avif(box(b"iinf", bytes(10**6))),
    "AVIF of references": avif(box(b"iref", bytes(10**5))),
    "AVIF of extents without fields": avif(box(b"iloc", bytes(10**4))),
    "AVIF of chunks": box(b"ftyp", b"avis\0\0\0\0") + box(b"moov", bytes(10**6)),
    "AVIF with megabytes of EXIF": avif_with_exif(10**6),
}


@pytest.mark.parametrize("name", LABORIOUS)
def test_a_header_that_is_made_to_keep_pillow_busy_is_laborious(name: str) -> None:
    assert is_laborious(LABORIOUS[name])


def exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker " * 200
    exif.get_ifd(0x8769)[0x927C] = bytes(20_000)
    return exif


USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"exif": exif(), "comment": "text " * 1000}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "JPEG with a large profile": ("JPEG", {"icc_profile": cmyk_profile() + bytes(2**21)}),
    "JPEG with a large XMP block": ("JPEG", {"xmp": bytes(60_000)}),
    "MPO": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (64, 48))] * 3}),
    "PNG": ("PNG", {"exif": exif(), "icc_profile": cmyk_profile() + bytes(2**19)}),
    "APNG": ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (900, 900))] * 30}),
    "WebP": ("WEBP", {"exif": exif(), "icc_profile": bytes(10**5)}),
    "GIF": ("GIF", {"comment": "text " * 10_000}),
    "animated GIF": (
        "GIF",
        {
            "save_all": True,
            "append_images": [Image.new("RGB", (900, 900))] * 30,
            "loop": 0,
            "disposal": 2,
        },
    ),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {"exif": exif(), "icc_profile": bytes(10**6)}),
    "TIFF of one line per strip": ("TIFF", {"strip_size": 1}),
    "BigTIFF": ("TIFF", {"big_tiff": True}),
    "AVIF": ("AVIF", {"exif": exif(), "icc_profile": bytes(10**5)}),
    "AVIF sequence": (
        "AVIF",
        {"save_all": True, "append_images": [Image.new("RGB", (900, 900))] * 10},
    ),
}


@pytest.mark.parametrize("name", USUAL)
def test_the_header_of_a_usual_picture_is_not_laborious(name: str) -> None:
    file_format, options = USUAL[name]
    picture = Image.fromarray(random_pixels(900, 900))
    assert not is_laborious(encode_picture(picture, file_format, **options))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_header_is_not_laborious(file_format: str) -> None:
    data = encode_picture(PICTURE, file_format)
    for length in range(min(len(data), 600)):
        assert not is_laborious(data[:length])


def test_pillow_opens_what_is_called_laborious() -> None:
    """The files above are not refused for being damaged."""
    for name in ("JPEG of empty segments", "PNG of empty chunks", "GIF of comments"):
        assert Image.open(io.BytesIO(LABORIOUS[name])).size
