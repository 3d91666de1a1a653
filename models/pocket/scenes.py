"""Scenes: what the pocket models know, and the exact answers about them.

A scene is a gray canvas with one to three flat shapes, each in its own cell of a 3 × 3 grid. This
file holds the nouns and the language; :mod:`models.pocket.drawing` turns a scene into pixels.

Coordinates here are pixels of the drawn picture, x to the right, y down. Boxes and points are
normalized to [0, 1].
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

CELLS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
KINDS = ("circle", "square", "triangle")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
LENGTHS = ("short", "normal", "long")
NUMBERS = ("Zero", "One", "Two", "Three")

MIN_SIDE, MAX_SIDE, MAX_ASPECT = 96, 1024, 2.0
RADIUS_RANGE = (0.24, 0.42)
"""A shape's radius, or half its side, as a fraction of its cell's shorter side."""
OFFSET_RANGE = 0.10
"""How far a shape's middle may lie from its cell's, as a fraction of the cell's side."""


@dataclass(frozen=True)
class Shape:
    """One flat shape. ``radius`` is half the side of a square and of a triangle's bounding square."""

    kind: str
    color: str
    cell: int
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]
    triangle_base: float = 1.0
    """Half the width of a triangle's base, in radii."""
    triangle_drop: float = 1.0
    """How far a triangle's base lies below ``y``, in radii."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The bounding box (x_min, y_min, x_max, y_max) in pixels."""
        if self.kind == "triangle":
            half = self.radius * self.triangle_base
            return (
                self.x - half,
                self.y - self.radius,
                self.x + half,
                self.y + self.radius * self.triangle_drop,
            )
        return (
            self.x - self.radius,
            self.y - self.radius,
            self.x + self.radius,
            self.y + self.radius,
        )

    def matches(self, subject: str) -> bool:
        """Whether a subject such as ``red circle``, ``circle`` or ``shape`` means this shape."""
        return subject in (self.name, self.kind, "shape")


@dataclass(frozen=True)
class Scene:
    """A picture's ground truth. ``shapes`` stand in reading order."""

    width: int
    height: int
    background: int
    shapes: tuple[Shape, ...]

    def caption(self, length: str = "normal") -> str:
        """The exact caption: ``short`` names the shapes, ``normal`` adds where, ``long`` adds how
        many."""
        where = length != "short"
        phrases = [
            f"{article(shape.color)} {shape.name}"
            + (f" at the {CELLS[shape.cell]}" if where else "")
            for shape in self.shapes
        ]
        listing = (
            phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
        )
        if length != "long":
            return listing
        noun = "shape" if len(self.shapes) == 1 else "shapes"
        return f"{NUMBERS[len(self.shapes)]} {noun} on a gray background: {listing}"

    def boxes(self, subject: str) -> list[tuple[float, float, float, float]]:
        """Normalized boxes (x_min, y_min, x_max, y_max) of what the subject names, in reading
        order."""
        scale = (self.width, self.height, self.width, self.height)
        found = (shape.box for shape in self.shapes if shape.matches(subject))
        return [(b[0] / scale[0], b[1] / scale[1], b[2] / scale[2], b[3] / scale[3]) for b in found]

    def points(self, subject: str) -> list[tuple[float, float]]:
        """Normalized centers of what the subject names, in reading order."""
        return [(s.x / self.width, s.y / self.height) for s in self.shapes if s.matches(subject)]


@dataclass(frozen=True)
class Question:
    """A query about a scene, its kind (a row of the benchmark's table) and its exact answer."""

    kind: str
    text: str
    answer: str = field(compare=False)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: random.Random, max_side: int = MAX_SIDE) -> Scene:
    """A scene drawn at random from everything that is allowed; sides are log-uniform up to
    ``max_side``."""
    width, height = _random_size(rng, max_side)
    cells = sorted(rng.sample(range(9), rng.randint(1, 3)))
    shapes = tuple(_random_shape(rng, cell, width, height) for cell in cells)
    return Scene(width, height, rng.randint(90, 165), shapes)


def _random_size(rng: random.Random, max_side: int) -> tuple[int, int]:
    while True:
        first = MIN_SIDE * (max_side / MIN_SIDE) ** rng.random()
        second = first * MAX_ASPECT ** rng.uniform(-1, 1)
        width, height = round(first), round(second)
        if min(width, height) >= MIN_SIDE and max(width, height) <= max_side:
            return width, height


def _random_shape(rng: random.Random, cell: int, width: int, height: int) -> Shape:
    cell_width, cell_height = width / 3, height / 3
    radius = rng.uniform(*RADIUS_RANGE) * min(cell_width, cell_height)
    color = rng.choice(list(COLORS))
    red, green, blue = (min(255, max(0, level + rng.randint(-12, 12))) for level in COLORS[color])
    return Shape(
        kind=rng.choice(KINDS),
        color=color,
        cell=cell,
        x=_place(rng, cell % 3, cell_width, radius),
        y=_place(rng, cell // 3, cell_height, radius),
        radius=radius,
        rgb=(red, green, blue),
        triangle_base=rng.uniform(0.8, 1.0),
        triangle_drop=rng.choice((0.5, 1.0, rng.uniform(0.5, 1.0))),
    )


def _place(rng: random.Random, index: int, side: float, radius: float) -> float:
    """A middle near the cell's own, so that the shape stays inside its cell."""
    room = min(OFFSET_RANGE * side, side / 2 - radius)
    return (index + 0.5) * side + rng.uniform(-room, room)


def ask_count(scene: Scene) -> Question:
    return Question("count", "How many shapes are there?", str(len(scene.shapes)))


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    """None where no kind of shape stands alone in the scene."""
    kinds = Counter(shape.kind for shape in scene.shapes)
    single = [shape for shape in scene.shapes if kinds[shape.kind] == 1]
    if not single:
        return None
    shape = rng.choice(single)
    return Question("color", f"What color is the {shape.kind}?", shape.color)


def ask_shape(scene: Scene, rng: random.Random, cell: int) -> Question:
    kind = next((shape.kind for shape in scene.shapes if shape.cell == cell), "none")
    return Question("shape", f"What shape is at the {CELLS[cell]}?", kind)


def ask_presence(scene: Scene, rng: random.Random, present: bool) -> Question:
    """Asks for a shape that is there, or for one that differs from one that is there in color, kind
    or both."""
    shape = rng.choice(scene.shapes)
    name, names = shape.name, {s.name for s in scene.shapes}
    while not present and name in names:
        color = rng.choice([shape.color, rng.choice(list(COLORS))])
        name = f"{color} {rng.choice(KINDS)}"
    return Question("presence", f"Is there {article(name)} {name}?", "yes" if present else "no")


def questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """One of each kind of query, with balanced answers; ``color`` only where it has one answer."""
    yield ask_count(scene)
    color = ask_color(scene, rng)
    if color is not None:
        yield color
    occupied = [shape.cell for shape in scene.shapes]
    yield ask_shape(scene, rng, rng.choice(occupied) if rng.random() < 0.6 else rng.randrange(9))
    yield ask_presence(scene, rng, present=rng.random() < 0.5)
