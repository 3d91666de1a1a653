"""Scenes, which the pocket models are trained on, and exact answers about them.

A scene is a gray canvas with one to three flat shapes, each in its own cell of a 3 × 3 grid. This
module describes scenes and generates text about them; :mod:`models.pocket.drawing` draws them.

Coordinates of shapes are pixels of the drawn picture, x to the right, y down. Boxes and points in
answers are normalized to [0, 1].
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]
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

MIN_SIDE = 96
MAX_SIDE = 1024
MAX_ASPECT = 2.0
RADIUS_RANGE = (0.24, 0.42)
"""Range of a shape's radius, or half its side, as a fraction of its cell's shorter side."""
OFFSET_RANGE = 0.10
"""Largest offset of a shape's center from its cell's, as a fraction of the cell's side."""


@dataclass(frozen=True)
class Shape:
    """One flat shape in a scene."""

    kind: str
    color: str
    cell: int
    x: float
    """The center's coordinates, in pixels."""
    y: float
    radius: float
    """In pixels. Half the side of a square, and of a triangle's bounding square."""
    rgb: tuple[int, int, int]
    triangle_base: float = 1.0
    """Half the width of a triangle's base, in radii."""
    triangle_drop: float = 1.0
    """Distance from ``y`` down to a triangle's base, in radii."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def box(self) -> Box:
        """The bounding box (x_min, y_min, x_max, y_max), in pixels."""
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
        """Whether a subject such as ``red circle``, ``circle`` or ``shape`` names this shape."""
        return subject in (self.name, self.kind, "shape")


@dataclass(frozen=True)
class Scene:
    """The ground truth of a picture."""

    width: int
    """In pixels."""
    height: int
    background: int
    """Level of gray, 0 to 255."""
    shapes: tuple[Shape, ...]
    """In reading order of their cells."""

    def caption(self, length: str = "normal") -> str:
        """Return the exact caption.

        ``short`` names the shapes, ``normal`` adds their cells, and ``long`` their number.
        """
        phrases = [f"{article(shape.color)} {shape.name}" for shape in self.shapes]
        if length != "short":
            cells = [CELLS[shape.cell] for shape in self.shapes]
            phrases = [
                f"{phrase} at the {cell}" for phrase, cell in zip(phrases, cells, strict=True)
            ]
        *head, last = phrases
        listing = f"{', '.join(head)} and {last}" if head else last
        if length != "long":
            return listing
        noun = "shape" if len(self.shapes) == 1 else "shapes"
        return f"{NUMBERS[len(self.shapes)]} {noun} on a gray background: {listing}"

    def boxes(self, subject: str) -> list[Box]:
        """Return the normalized boxes (x_min, y_min, x_max, y_max) of the shapes that the subject
        names, in reading order."""
        return [self._normalize(shape.box) for shape in self.shapes if shape.matches(subject)]

    def points(self, subject: str) -> list[tuple[float, float]]:
        """Return the normalized centers of the shapes that the subject names, in reading order."""
        shapes = [shape for shape in self.shapes if shape.matches(subject)]
        return [(shape.x / self.width, shape.y / self.height) for shape in shapes]

    def _normalize(self, box: Box) -> Box:
        x_min, y_min, x_max, y_max = box
        return x_min / self.width, y_min / self.height, x_max / self.width, y_max / self.height


@dataclass(frozen=True)
class Question:
    """A query about a scene, and its exact answer."""

    category: str
    """``count``, ``color``, ``shape`` or ``presence``: its row in the benchmark's table."""
    text: str
    answer: str = field(compare=False)


def article(word: str) -> str:
    """Return the indefinite article for a word."""
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: random.Random, max_side: int = MAX_SIDE) -> Scene:
    """Return a random scene. Its sides are log-uniform from ``MIN_SIDE`` to ``max_side`` pixels."""
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
        x=_random_center(rng, cell % 3, cell_width, radius),
        y=_random_center(rng, cell // 3, cell_height, radius),
        radius=radius,
        rgb=(red, green, blue),
        triangle_base=rng.uniform(0.8, 1.0),
        triangle_drop=rng.choice((0.5, 1.0, rng.uniform(0.5, 1.0))),
    )


def _random_center(rng: random.Random, index: int, side: float, radius: float) -> float:
    """Return a coordinate near the cell's center that keeps the shape inside its cell."""
    max_offset = min(OFFSET_RANGE * side, side / 2 - radius)
    return (index + 0.5) * side + rng.uniform(-max_offset, max_offset)


def ask_count(scene: Scene) -> Question:
    return Question("count", "How many shapes are there?", str(len(scene.shapes)))


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    """Return None if no shape is the only one of its kind in the scene."""
    counts = Counter(shape.kind for shape in scene.shapes)
    unique = [shape for shape in scene.shapes if counts[shape.kind] == 1]
    if not unique:
        return None
    shape = rng.choice(unique)
    return Question("color", f"What color is the {shape.kind}?", shape.color)


def ask_shape(scene: Scene, rng: random.Random, cell: int) -> Question:
    kind = next((shape.kind for shape in scene.shapes if shape.cell == cell), "none")
    return Question("shape", f"What shape is at the {CELLS[cell]}?", kind)


def ask_presence(scene: Scene, rng: random.Random, present: bool) -> Question:
    """Ask for a shape of the scene, or for one that isn't there: it differs from a shape of the
    scene in color, kind or both."""
    shape = rng.choice(scene.shapes)
    name = shape.name
    names = {shape.name for shape in scene.shapes}
    while not present and name in names:
        color = rng.choice([shape.color, rng.choice(list(COLORS))])
        name = f"{color} {rng.choice(KINDS)}"
    return Question("presence", f"Is there {article(name)} {name}?", "yes" if present else "no")


def questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Yield one question of each kind, with balanced answers.

    ``color`` is left out if no shape is the only one of its kind.
    """
    yield ask_count(scene)
    color = ask_color(scene, rng)
    if color is not None:
        yield color
    occupied = [shape.cell for shape in scene.shapes]
    yield ask_shape(scene, rng, rng.choice(occupied) if rng.random() < 0.6 else rng.randrange(9))
    yield ask_presence(scene, rng, present=rng.random() < 0.5)
