"""DecoderSpec of scenes to train on, and what may be looked for in them."""

from __future__ import annotations

import random

from models.pocket.scenes import COLORS, KINDS, Scene

Window = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the scene."""
KIND_INDEX = {name: index + 1 for index, name in enumerate(KINDS)}
COLOR_INDEX = {name: index + 1 for index, name in enumerate(COLORS)}
PLACED = ("caption normal", "caption long", "shape", "aid", "phrasing")
"""Kinds of questions whose answers name places in the grid, which a cut picture no longer has."""


def random_window(scene: Scene, rng: random.Random) -> tuple[int, int, int, int]:
    """A window with every shape whole in it, at most 2.2 times as long as it is wide."""
    boxes = [shape.box for shape in scene.shapes]
    inner = (
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )
    for _ in range(20):
        left, top = int(inner[0] * rng.random()), int(inner[1] * rng.random())
        right = scene.width - int((scene.width - inner[2]) * rng.random())
        bottom = scene.height - int((scene.height - inner[3]) * rng.random())
        width, height = right - left, bottom - top
        if max(width, height) <= 2.2 * min(width, height) and min(width, height) >= 32:
            return left, top, right, bottom
    return 0, 0, scene.width, scene.height


def subject(scene: Scene, rng: random.Random) -> str:
    """A shape of the scene by its name or its kind, all of them, or, one time in four, any shape or
    kind at all."""
    if rng.random() < 0.25:
        kind = rng.choice(KINDS)
        return kind if rng.random() < 0.5 else f"{rng.choice(list(COLORS))} {kind}"
    shape = rng.choice(scene.shapes)
    return rng.choice((shape.name, shape.name, shape.kind, "shape"))
