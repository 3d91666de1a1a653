"""The before-and-after pictures of docs/preprocessing.md.

``python -m benchmarks.before_after docs/preprocessing --photograph FILE`` draws one row a fault:
what came, what each recipe makes of it, side by side.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.documents import document
from benchmarks.preprocessing import DEGRADATIONS, LIMITS
from models.pocket.drawing import draw
from models.pocket.scenes import random_scene
from preprocessing.encode import to_jpeg
from preprocessing.pipeline import run
from raylens.core.recipe import BUNDLED, PLAIN, choose

Pixels = NDArray[np.uint8]
SIDE, GAP, LABEL = 240, 8, 18
RECIPES: dict[str, Any] = {
    "off": "plain",
    "auto": "auto",
    "on": {"denoise": {"enabled": True}, "color_balance": {"enabled": True}},
}


def panel(pixels: Pixels, label: str, side: int) -> Image.Image:
    """A picture of at most ``side`` pixels, under its label."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (side, picture.height + LABEL), "white")
    framed.paste(picture, (0, LABEL))
    ImageDraw.Draw(framed).text((2, 1), label, "black", ImageFont.load_default(13))
    return framed


def row(pixels: Pixels, recipes: dict[str, Any], title: str, side: int = SIDE) -> Image.Image:
    data = to_jpeg(pixels, 95, optimize=False)
    panels: list[Image.Image] = []
    for name, choice in recipes.items():
        done = run(data, choose(choice, PLAIN, BUNDLED), LIMITS)
        print(
            f"{title}, {name}: " + "; ".join(f"{step.name}: {step.did}" for step in done.steps[1:])
        )
        panels.append(panel(done.pixels, f"{title}: {name}" if not panels else name, side))
    strip = Image.new(
        "RGB", (len(panels) * (side + GAP) - GAP, max(made.height for made in panels)), "white"
    )
    for number, made in enumerate(panels):
        strip.paste(made, (number * (side + GAP), 0))
    return strip


def sheet(rows: list[Image.Image], path: Path) -> None:
    whole = Image.new(
        "RGB", (max(r.width for r in rows), sum(r.height + GAP for r in rows) - GAP), "white"
    )
    y = 0
    for made in rows:
        whole.paste(made, (0, y))
        y += made.height + GAP
    whole.save(path, quality=88, optimize=True)


def letterboxed(pixels: Pixels) -> Pixels:
    bar = pixels.shape[0] // 5
    return np.pad(pixels, ((bar, bar), (0, 0), (0, 0)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photograph", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    photograph = np.asarray(Image.open(arguments.photograph).convert("RGB"))
    rng = random.Random(11)
    scene = draw(random_scene(rng, 300), rng)
    for subject, pixels in (("scenes", scene), ("photographs", photograph)):
        rows = [
            row(f(pixels, np.random.default_rng(0)), RECIPES, name.split(" (")[0])
            for name, f in DEGRADATIONS.items()
        ]
        sheet(rows, arguments.folder / f"{subject}.jpg")
    crops = {"off": "plain", "smart_crop": {"smart_crop": True}}
    shapes = {
        **crops,
        "to 512 by 512": {"smart_crop": True, "size": [512, 512], "preserve_aspect_ratio": False},
    }
    cropped = [row(letterboxed(photograph), shapes, "letterboxed"), row(scene, crops, "a scene")]
    sheet(cropped, arguments.folder / "crop.jpg")
    page = document(random.Random(2))[:420, :420]
    sheet([row(page, RECIPES, "small text", 420)], arguments.folder / "text.jpg")


if __name__ == "__main__":
    main()
