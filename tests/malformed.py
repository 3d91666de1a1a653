"""Broken picture files by seed: cut short, with bits flipped, under wrong headers, and bombs."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from testing.pictures import encoded, gradient, png_header, random_pixels

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def malformed(seed: int) -> tuple[str, bytes]:
    """A description and a file that is no whole picture."""
    rng = random.Random(seed)
    return (truncated, flipped, mislabeled, bomb)[seed % 4](rng)


def truncated(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(KINDS)
    data = encoded(
        random_pixels(rng.randint(40, 200), rng.randint(40, 200), rng.randrange(99)), kind
    )
    share = rng.uniform(0.02, 0.95)
    return f"{kind} cut at {share:.0%}", data[: int(len(data) * share)]


def flipped(rng: random.Random) -> tuple[str, bytes]:
    """Flips bits until Pillow finds the file broken: most formats have no checksum, and hide a flip
    among the pixels.

    A PNG has checksums, and every flip breaks it.
    """
    kind = rng.choice(KINDS)
    pixels = gradient(rng.randint(40, 200), rng.randint(40, 200))
    whole = encoded(pixels, kind)
    while True:
        data = bytearray(whole)
        for _ in range(1 if kind == "PNG" else 40):
            place = rng.randrange(len(data) if kind in ("PNG", "JPEG") else min(len(data), 200))
            data[place] ^= 1 << rng.randrange(8)
        if kind == "PNG" or _is_broken(bytes(data)):
            return f"{kind} with flipped bits", bytes(data)


def _is_broken(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except Exception:
        return True
    return False


def mislabeled(rng: random.Random) -> tuple[str, bytes]:
    noise = rng.randbytes(rng.randint(1, 3000))
    heads = {
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
    name = rng.choice(list(heads))
    return f"noise behind {name}", heads[name] + noise


def bomb(rng: random.Random) -> tuple[str, bytes]:
    side = rng.choice((17_000, 50_000, 65_535))
    png = png_header(side, side)
    whole = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(whole, "PNG")
    kinds = {
        "PNG's header": png,
        "PNG of 144 million pixels in 18 kB": whole.getvalue(),
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
        "PNG with 200 MB of text": _with_chunk(
            b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**8), 1)
        ),
        "progressive JPEG of endless scans": _scans(),
    }
    name = rng.choice(list(kinds))
    return f"bomb: {name}", kinds[name]


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


def _with_chunk(kind: bytes, data: bytes) -> bytes:
    png = encoded(gradient(20, 20))
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def _scans() -> bytes:
    data = encoded(np.zeros((3000, 3000, 3), np.uint8), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 200 + data[-2:]
