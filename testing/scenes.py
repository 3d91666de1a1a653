"""Scenes with their pictures, as clients send them."""

from __future__ import annotations

import base64
import random

from models.pocket.drawing import draw, encode
from models.pocket.scenes import Scene, random_scene


def draw_scene(seed: int, max_side: int = 512) -> tuple[Scene, bytes, str]:
    """Return a random scene, its picture file, and that file as a data URL."""
    rng = random.Random(seed)
    scene = random_scene(rng, max_side)
    data, media_type = encode(draw(scene, rng), rng)
    return scene, data, f"data:{media_type};base64,{base64.b64encode(data).decode()}"
