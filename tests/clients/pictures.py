"""Pictures of scenes with their boxes, in a folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from models.pocket.drawing import draw
from models.pocket.scenes import KINDS, random_scene
from testing.pictures import ORIENTATION_TAG, TURNS


def write_pictures(folder: Path, count: int) -> None:
    """Write pictures, of which some are rotated by EXIF, and ``truth.json``.

    That file has, by file name and by kind of shape, the boxes in fractions of the upright picture.
    """
    rng = random.Random(5)
    truth = {}
    orientations = [1, *TURNS]
    for number in range(count):
        scene = random_scene(rng, 512)
        picture = Image.fromarray(draw(scene, rng))
        orientation = orientations[number % len(orientations)]
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        if orientation > 1:
            picture = picture.transpose(TURNS[orientation])
        name = f"{number}.png"
        picture.save(folder / name, exif=exif)
        truth[name] = {kind: scene.boxes(kind) for kind in KINDS}
    (folder / "truth.json").write_text(json.dumps(truth))
