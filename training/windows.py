"""Windows of training scenes, and subjects to look for in a scene."""

from __future__ import annotations

import random

from models.pocket.scenes import COLORS, KINDS, Scene

Window = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the scene."""
KIND_INDEX = {name: index + 1 for index, name in enumerate(KINDS)}
"""Class index of each kind of shape for the probe; 0 means no shape."""
COLOR_INDEX = {name: index + 1 for index, name in enumerate(COLORS)}
"""Class index of each color for the probe; 0 means no shape."""
GRID_TASKS = ("caption normal", "caption long", "shape", "aid", "phrasing")
"""Tasks whose answers name cells of the grid, which a cropped picture no longer has."""


def random_window(scene: Scene, rng: random.Random) -> tuple[int, int, int, int]:
    """Return a random window that contains every shape completely.

    Its aspect ratio is at most 2.2. Returns the whole scene if no such window is found.
    """
    boxes = [shape.box for shape in scene.shapes]
    inner_left = min(box[0] for box in boxes)
    inner_top = min(box[1] for box in boxes)
    inner_right = max(box[2] for box in boxes)
    inner_bottom = max(box[3] for box in boxes)
    for _ in range(20):
        left = int(inner_left * rng.random())
        top = int(inner_top * rng.random())
        right = scene.width - int((scene.width - inner_right) * rng.random())
        bottom = scene.height - int((scene.height - inner_bottom) * rng.random())
        longer, shorter = max(right - left, bottom - top), min(right - left, bottom - top)
        if longer <= 2.2 * shorter and shorter >= 32:
            return left, top, right, bottom
    return 0, 0, scene.width, scene.height


def random_subject(scene: Scene, rng: random.Random) -> str:
    """Return a subject to look for: a shape's name or kind, or ``shape`` for all of them.

    One time in four it is any kind, or any color and kind, and may be absent from the scene.
    """
    if rng.random() < 0.25:
        kind = rng.choice(KINDS)
        return kind if rng.random() < 0.5 else f"{rng.choice(list(COLORS))} {kind}"
    shape = rng.choice(scene.shapes)
    return rng.choice((shape.name, shape.name, shape.kind, "shape"))
