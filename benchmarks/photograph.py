"""Random pictures that cost as much to decode as photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from preprocessing.encode import to_jpeg


def draw_photograph(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG of soft random blotches with fine grain.

    It takes about as long to decode as a photograph of the same size.
    """
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (height // 64, width // 64, 3), dtype=np.uint8))
    soft = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-6, 7, soft.shape, dtype=np.int16)
    return to_jpeg(np.clip(soft + grain, 0, 255).astype(np.uint8), 89, optimize=False)
