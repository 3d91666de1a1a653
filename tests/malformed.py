"""Broken picture files by seed: truncated, with flipped bits, under wrong headers, and bombs."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
from PIL import Image

from testing.pictures import encode_picture, gradient, png_header, random_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def malformed(seed: int) -> tuple[str, bytes]:
    """Return a description and a file that is not a complete picture."""
    rng = random.Random(seed)
    make = (truncate, flip_bits, mislabel, make_bomb)[seed % 4]
    return make(rng)


def truncate(rng: random.Random) -> tuple[str, bytes]:
    file_format = rng.choice(FORMATS)
    pixels = random_pixels(rng.randint(40, 200), rng.randint(40, 200), rng.randrange(99))
    data = encode_picture(pixels, file_format)
    fraction = rng.uniform(0.02, 0.95)
    return f"{file_format} cut at {fraction:.0%}", data[: int(len(data) * fraction)]


def flip_bits(rng: random.Random) -> tuple[str, bytes]:
    """Flip bits until Pillow can't decode the file.

    Most formats have no checksum: a flip may only change a pixel. A PNG has checksums, and every
    flip breaks it.
    """
    file_format = rng.choice(FORMATS)
    original = encode_picture(gradient(rng.randint(40, 200), rng.randint(40, 200)), file_format)
    size = len(original)
    end = size if file_format in ("PNG", "JPEG") else min(size, 200)
    while True:
        data = bytearray(original)
        for _ in range(1 if file_format == "PNG" else 40):
            position = rng.randrange(end)
            data[position] ^= 1 << rng.randrange(8)
        if file_format == "PNG" or _is_broken(bytes(data)):
            return f"{file_format} with flipped bits", bytes(data)


def _is_broken(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except Exception:
        return True
    return False


def mislabel(rng: random.Random) -> tuple[str, bytes]:
    """Put noise behind a file format's header."""
    noise = rng.randbytes(rng.randint(1, 3000))
    headers = {
        "a JPEG's header": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "a PNG's header": b"\x89PNG\r\n\x1a\n",
        "a GIF's header": b"GIF89a\x40\0\x40\0\xf7\0\0",
        "a BMP's header": b"BM" + bytes(12) + b"\x28\0\0\0\x40\0\0\0\x40\0\0\0\1\0\x18\0",
        "a WebP's header": b"RIFF\0\1\0\0WEBPVP8 ",
        "a TIFF's header": b"II*\0\x08\0\0\0",
        "an AVIF's header": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
        "a PDF": b"%PDF-1.7\n",
        "a page": b"<!DOCTYPE html><html>",
        "a ZIP": b"PK\x03\x04",
        "a HEIC": b"\0\0\0\x18ftypheic",
        "a video": b"\0\0\0\x18ftypmp42",
        "nothing": b"",
        "text": b"this is no picture ",
    }
    name = rng.choice(list(headers))
    return f"noise behind {name}", headers[name] + noise


def make_bomb(rng: random.Random) -> tuple[str, bytes]:
    """Make a small file that takes too much memory or time to decode."""
    side = rng.choice((17_000, 50_000, 65_535))
    large_png = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(large_png, "PNG")
    bombs = {
        "PNG's header": png_header(side, side),
        "PNG of 144 million pixels in 18 kB": large_png.getvalue(),
        "BMP's header": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "GIF's header": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b","
        + bytes(9)
        + b"\x08\1\0\0;",
        "TIFF's header": _tiff_header(side),
        "WebP's header": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
        + (16_383).to_bytes(3, "little") * 2
        + b"VP8 \0\0\0\0",
        "JPEG's header": b"\xff\xd8\xff\xc0\0\x0b\x08"
        + struct.pack(">HH", side, side)
        + b"\1\1\x11\0\xff\xd9",
        "progressive JPEG of 200 scans": _jpeg_with_scans(200),
    }
    name = rng.choice(list(bombs))
    return f"bomb: {name}", bombs[name]


def _tiff_header(side: int) -> bytes:
    tags = [
        (256, side),
        (257, side),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, side),
        (279, 9),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _jpeg_with_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated ``count`` times."""
    data = encode_picture(np.zeros((3000, 3000, 3), np.uint8), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]
