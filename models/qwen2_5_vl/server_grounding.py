"""Grounding with a Qwen2.5-VL behind another server."""

from __future__ import annotations

import numpy as np
from PIL import Image

from models.grounding import Grounding
from models.qwen2_5_vl.family import Qwen2_5_VLSettings
from models.qwen2_5_vl.grounding import parse_boxes, parse_points
from models.qwen2_5_vl.model import GROUNDING_PROMPTS, resized_size
from raylens.core.families import FamilySettings
from raylens.core.types import Location, Region
from raylens.engine.model import Pixels

TOKEN_SIDE = 28
"""Side of an image token in pixels."""
MIN_PIXELS = 4 * TOKEN_SIDE**2
MAX_PIXELS = 1280 * TOKEN_SIDE**2
"""Bounds of a picture's area, unless the configuration sets them.

Servers don't resize a picture within these bounds whose sides are whole image tokens.
"""


class ServerGrounding(Grounding):
    prompts = GROUNDING_PROMPTS

    def resize(self, picture: Pixels, settings: FamilySettings) -> Pixels:
        assert isinstance(settings, Qwen2_5_VLSettings)
        min_pixels = settings.min_pixels or MIN_PIXELS
        max_pixels = settings.max_pixels or MAX_PIXELS
        height, width = picture.shape[:2]
        height, width = resized_size(width, height, TOKEN_SIDE, min_pixels, max_pixels)
        image = Image.fromarray(picture)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))

    def regions(self, text: str, width: int, height: int) -> tuple[Region, ...]:
        return parse_boxes(text, width, height)

    def locations(self, text: str, width: int, height: int) -> tuple[Location, ...]:
        return parse_points(text, width, height)


GROUNDING = ServerGrounding()
