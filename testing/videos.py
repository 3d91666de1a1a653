"""Video files for tests and benchmarks."""

from __future__ import annotations

import random
import struct

import numpy as np

from models.pocket.video_files import FAST_VP9, encode_video


def malformed_video(seed: int) -> tuple[str, bytes]:
    """Return a damaged video file, and what is wrong with it. No player can show it."""
    rng = random.Random(seed)
    codec, container = rng.choice(
        (("libx264", "mp4"), ("libx264", "matroska"), ("libvpx-vp9", "webm"), ("mpeg4", "avi"))
    )
    options = FAST_VP9 if container == "webm" else {}
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 48, 64, 3), np.uint8)
    data = bytearray(encode_video(list(pixels), 6, codec, container, options))
    kinds = ["cut off", "wrong beginning", "noise inside", "only a beginning"]
    kind = rng.choice([*kinds, "too long", "too many frames", "too large"])
    if kind in kinds:
        match kind:
            case "cut off":
                del data[rng.randrange(40, len(data) - 1) :]
            case "wrong beginning":
                data[:64] = rng.randbytes(64)
            case "noise inside":
                start = len(data) // 4
                data[start:-start] = rng.randbytes(len(data) - 2 * start)
            case "only a beginning":
                data[200:] = bytes(len(data) - 200)
        return f"{container}, {kind}", bytes(data)
    data = bytearray(encode_video(list(pixels), 6))
    box, offset, value = {
        "too long": (rng.choice((b"mvhd", b"mdhd")), 16, struct.pack(">I", 2**31 - 1)),
        "too many frames": (b"stsz", 8, struct.pack(">I", 2**31 - 1)),
        "too large": (b"avc1", 24, struct.pack(">HH", 65_000, 65_000)),
    }[kind]
    place = data.rindex(box) + 4 + offset
    data[place : place + len(value)] = value
    return f"mp4, {kind}", bytes(data)
