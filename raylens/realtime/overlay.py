"""Drawing of results on frames: boxes, points and a bar of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raylens.core.types import Location, Region

Pixels = NDArray[np.uint8]
"""A frame as (height, width, 3) RGB."""

GREEN = (0, 220, 0)
RED = (220, 50, 50)
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
FILL_SHARE = 0.15
"""Opacity of a box's inside, as a share of the overlay's."""
BAR_SHARE = 0.6
"""Opacity of the bar behind text, as a share of the overlay's."""
MAX_BAR = 1 / 3
"""Largest share of the frame's height that the bar takes."""
_FONT_SHARE = 0.04
"""Height of text, as a share of the frame's height, at a scale of 1."""


class Overlay:
    """Draws on one frame. ``opacity`` is from 0 to 1, and ``font_scale`` about 1."""

    def __init__(self, frame: Pixels, opacity: float, font_scale: float) -> None:
        self._frame = Image.fromarray(frame).convert("RGBA")
        self._layer = Image.new("RGBA", self._frame.size)
        self._pen = ImageDraw.Draw(self._layer)
        self._opacity = opacity
        width, height = self._frame.size
        self._line = max(1, round(min(width, height) / 200))
        size = max(8, round(_FONT_SHARE * height * font_scale))
        self._font = _load_font(size)

    def render(self) -> Pixels:
        """Return the frame with what was drawn on it."""
        return np.asarray(Image.alpha_composite(self._frame, self._layer).convert("RGB"))

    def boxes(self, regions: Sequence[Region]) -> None:
        """Draw green boxes with a light fill, and their numbers above them, or below at the top
        edge."""
        for number, region in enumerate(regions, 1):
            left, top = self._place(region.x_min, region.y_min)
            right, bottom = self._place(region.x_max, region.y_max)
            self._pen.rectangle(
                (left, top, max(left, right), max(top, bottom)),
                fill=self._color(GREEN, FILL_SHARE),
                outline=self._color(GREEN),
                width=self._line,
            )
            self._label(f"#{number}", left, top, bottom, GREEN)

    def points(self, locations: Sequence[Location]) -> None:
        """Draw red dots with a white rim, and their numbers beside them."""
        radius = 4 * self._line
        for number, location in enumerate(locations, 1):
            x, y = self._place(location.x, location.y)
            around = (x - radius, y - radius, x + radius, y + radius)
            self._pen.ellipse(
                around, fill=self._color(RED), outline=self._color(WHITE), width=self._line
            )
            self._label(f"#{number}", x + radius, y - radius, y + radius, RED)

    def text(self, text: str) -> None:
        """Write text on a dark bar at the bottom, at most a third of the frame high.

        What doesn't fit is cut off, and ends with an ellipsis.
        """
        width, height = self._frame.size
        padding = 2 * self._line + 2
        ascent, descent = self._font.getmetrics()
        line_height = ascent + descent
        most = max(1, int((MAX_BAR * height - 2 * padding) / line_height))
        lines = self._wrap(text, width - 2 * padding, most)
        bar = min(height, len(lines) * line_height + 2 * padding)
        self._pen.rectangle((0, height - bar, width, height), fill=self._color(BLACK, BAR_SHARE))
        for number, line in enumerate(lines):
            place = (padding, height - bar + padding + number * line_height)
            self._pen.text(place, line, fill=self._color(WHITE), font=self._font)

    def _wrap(self, text: str, width: int, most: int) -> list[str]:
        """Break text into at most ``most`` lines of ``width`` pixels."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            line = ""
            for word in self._words(paragraph, width):
                if len(lines) > most:
                    break
                longer = f"{line} {word}" if line else word
                if line and self._font.getlength(longer) > width:
                    lines.append(line)
                    line = word
                else:
                    line = longer
            lines.append(line)
        if len(lines) > most:
            last = lines[most - 1]
            while last and self._font.getlength(f"{last}…") > width:
                last = last[:-1]
            lines = [*lines[: most - 1], f"{last}…"]
        return lines

    def _words(self, text: str, width: int) -> Iterator[str]:
        """Yield the words of a text, and those that are wider than a line in parts that fit."""
        for word in text.split():
            rest = word
            while rest:
                lengths = (self._font.getlength(rest[:count]) for count in range(1, len(rest) + 1))
                fits = sum(1 for _ in takewhile(lambda length: length <= width, lengths))
                yield rest[: max(1, fits)]
                rest = rest[max(1, fits) :]

    def _label(self, text: str, x: float, top: float, bottom: float, color: Any) -> None:
        left, up, right, down = self._font.getbbox(text)
        height = down - up + 2
        y = top - height if top >= height else bottom
        self._pen.rectangle((x, y, x + right - left + 2, y + height), fill=self._color(color))
        self._pen.text((x + 1 - left, y + 1 - up), text, fill=self._color(WHITE), font=self._font)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point that is normalized to [0, 1]."""
        width, height = self._frame.size
        return round(x * (width - 1)), round(y * (height - 1))

    def _color(self, color: tuple[int, int, int], share: float = 1.0) -> tuple[int, int, int, int]:
        return (*color, round(255 * self._opacity * share))


@lru_cache(8)
def _load_font(size: int) -> Any:
    """Return Pillow's own font, which needs no file of the system's."""
    return ImageFont.load_default(size)
