"""Draw the before-and-after pictures of docs/preprocessing.md.

``python -m benchmarks.before_after docs/preprocessing --photograph FILE`` draws one row for each
fault: the input and the result of each recipe, side by side.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.documents import draw_document
from benchmarks.preprocessing import DEGRADATIONS, LIMITS
from models.pocket.drawing import draw
from models.pocket.scenes import random_scene
from preprocessing.encode import to_jpeg
from preprocessing.pipeline import run
from raylens.core.recipe import BUNDLED, PLAIN, choose

Pixels = NDArray[np.uint8]
SIDE = 240
GAP = 8
LABEL = 18
RECIPES: dict[str, Any] = {
    "off": "plain",
    "auto": "auto",
    "on": {"denoise": {"enabled": True}, "color_balance": {"enabled": True}},
}


def draw_panel(pixels: Pixels, label: str, side: int) -> Image.Image:
    """Return the picture, scaled to at most ``side`` pixels, under its label."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (side, picture.height + LABEL), "white")
    panel.paste(picture, (0, LABEL))
    ImageDraw.Draw(panel).text((2, 1), label, "black", ImageFont.load_default(13))
    return panel


def draw_row(pixels: Pixels, recipes: dict[str, Any], title: str, side: int = SIDE) -> Image.Image:
    """Return the results of all recipes side by side, and print what their steps did."""
    data = to_jpeg(pixels, 95, optimize=False)
    panels: list[Image.Image] = []
    for name, choice in recipes.items():
        result = run(data, choose(choice, PLAIN, BUNDLED), LIMITS)
        steps = "; ".join(f"{step.name}: {step.did}" for step in result.steps[1:])
        print(f"{title}, {name}: {steps}")
        label = name if panels else f"{title}: {name}"
        panels.append(draw_panel(result.pixels, label, side))
    width = len(panels) * (side + GAP) - GAP
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    for number, panel in enumerate(panels):
        row.paste(panel, (number * (side + GAP), 0))
    return row


def save_sheet(rows: list[Image.Image], path: Path) -> None:
    """Save the rows, one below the other, as a JPEG."""
    width = max(row.width for row in rows)
    height = sum(row.height + GAP for row in rows) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + GAP
    sheet.save(path, quality=88, optimize=True)


def letterbox(pixels: Pixels) -> Pixels:
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
        rows = []
        for name, degrade in DEGRADATIONS.items():
            degraded = degrade(pixels, np.random.default_rng(0))
            rows.append(draw_row(degraded, RECIPES, name.split(" (")[0]))
        save_sheet(rows, arguments.folder / f"{subject}.jpg")
    crops: dict[str, Any] = {"off": "plain", "smart_crop": {"smart_crop": True}}
    square = {"smart_crop": True, "size": [512, 512], "preserve_aspect_ratio": False}
    crop_rows = [
        draw_row(letterbox(photograph), {**crops, "to 512 by 512": square}, "letterboxed"),
        draw_row(scene, crops, "a scene"),
    ]
    save_sheet(crop_rows, arguments.folder / "crop.jpg")
    page = draw_document(random.Random(2))[:420, :420]
    save_sheet([draw_row(page, RECIPES, "small text", 420)], arguments.folder / "text.jpg")


if __name__ == "__main__":
    main()
